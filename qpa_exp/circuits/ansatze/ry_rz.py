"""R_Y and R_Z on every qubit, each with its chain of CNOTs (Eq. 14)."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RY, RZ, Ansatz

ENTRY = Ansatz("$R_Y$, $R_Z$", (RY, CNOT_CHAIN, RZ, CNOT_CHAIN))
