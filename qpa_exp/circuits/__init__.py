"""The quantum side: theta -> the probabilities of the basis states."""

from qpa_exp.circuits.ansatz import ANSATZE, Gate, gates, theta_shape
from qpa_exp.circuits.circuit import BACKENDS, Circuit
from qpa_exp.circuits.statevector import probabilities

__all__ = ["ANSATZE", "BACKENDS", "Circuit", "Gate", "gates", "probabilities", "theta_shape"]
