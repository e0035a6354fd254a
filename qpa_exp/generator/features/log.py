"""log(1 + 2^N p): of the order of 1, however many qubits there are."""

from qpa_exp.generator.features import Feature

ENTRY = Feature(
    "log(1 + 2^N p)", lambda probabilities, n_qubits: (probabilities * 2**n_qubits).log1p()
)
