"""A control: R_Y alone, so that nothing entangles."""

from qpa_exp.circuits.ansatz import RY, Ansatz

ENTRY = Ansatz("no entanglement", (RY,))
