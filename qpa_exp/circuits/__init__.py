"""The quantum side: theta -> the probabilities of the basis states."""

from qpa_exp.circuits.ansatz import ANSATZE, Gate, Moment, gates, theta_shape
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.circuits.controls import make_circuit
from qpa_exp.circuits.simulator import Simulator, make_simulator
from qpa_exp.circuits.statevector import probabilities

__all__ = [
    "ANSATZE", "Circuit", "Gate", "Moment", "Simulator", "gates", "make_circuit",
    "make_simulator", "probabilities", "theta_shape",
]  # fmt: skip
