"""The probability itself (Eq. 5)."""

from qpa_exp.generator.features import Feature

ENTRY = Feature("p", lambda probabilities, n_qubits: probabilities)
