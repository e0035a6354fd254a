"""A control: the circuit of ``ry`` at random angles that are never trained."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RY, Ansatz

ENTRY = Ansatz("$R_Y$, not trained", (RY, CNOT_CHAIN), trained=False)
