"""R_X and R_Z on every qubit, each with its chain of CNOTs (Eq. 13)."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RX, RZ, Ansatz

ENTRY = Ansatz("$R_X$, $R_Z$", (RX, CNOT_CHAIN, RZ, CNOT_CHAIN))
