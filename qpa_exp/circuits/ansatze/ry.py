"""R_Y on every qubit, then a chain of CNOTs (Eq. 1)."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RY, Ansatz

ENTRY = Ansatz("$R_Y$", (RY, CNOT_CHAIN))
