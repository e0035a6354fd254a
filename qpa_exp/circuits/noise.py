"""Qiskit Aer's noise models of the recorded devices."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from qpa_exp.circuits.to_qiskit import snapshot

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel


@cache
def noise_model(name: str) -> NoiseModel:
    """Of a recorded device, by its name in ``SNAPSHOTS``: seconds, once."""
    from qiskit_aer.noise import NoiseModel

    return NoiseModel.from_backend(snapshot(name))


def restrict(model: NoiseModel, qubits: Collection[int]) -> NoiseModel:
    """The model's errors on these qubits alone: Aer copies a whole device's at every run."""
    from qiskit_aer.noise import NoiseModel

    small = NoiseModel(basis_gates=model.basis_gates)
    # Aer has no public way to ask a model for its errors.
    for gate, errors in model._local_quantum_errors.items():
        for where, error in errors.items():
            if set(where) <= set(qubits):
                small.add_quantum_error(error, gate, where, warnings=False)
    for gate, error in model._default_quantum_errors.items():
        small.add_all_qubit_quantum_error(error, gate, warnings=False)
    for where, error in model._local_readout_errors.items():
        if set(where) <= set(qubits):
            small.add_readout_error(error, where, warnings=False)
    return small
