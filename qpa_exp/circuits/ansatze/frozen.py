"""A control: the circuit of ``ry`` at random angles that are never trained."""

from qpa_exp.circuits.ansatz import CNOT_CHAIN, RY, Ansatz

ENTRY = Ansatz("frozen circuit", (RY, CNOT_CHAIN), trained=False)
