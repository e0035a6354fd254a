"""IBM's devices as Qiskit Runtime recorded them, and Qiskit Aer's noise models of them.

The devices of the paper's Appendix G. Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel

RECORDED = {"fake_torino": "FakeTorino", "fake_fez": "FakeFez"}
"""By ``qpa.device``, their classes in Qiskit Runtime."""
NOISES: Registry[str | None] = Registry(
    "qpa.noise", {"none": None, "ibm_torino": "fake_torino", "ibm_fez": "fake_fez"}
)
"""The recorded device behind each ``qpa.noise``."""


@cache
def snapshot(name: str) -> Any:
    """The recorded device of that name in :data:`RECORDED`, a Qiskit backend."""
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, RECORDED[name])()


def record_of(name: str | None) -> dict[str, str]:
    """The device's version and the day of its record, by its name; {} where it is none of them."""
    if name not in RECORDED:
        return {}
    device = snapshot(name)
    day = device.properties().last_update_date.date().isoformat()
    return {name: f"{device.backend_version} ({day})"}


@cache
def noise_model(name: str) -> NoiseModel:
    """Of a recorded device: seconds, once."""
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
