"""R_X on every qubit, then a chain of CNOTs (Eq. 12)."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RX, Ansatz

ENTRY = Ansatz("$R_X$", (RX, CNOT_CHAIN))
