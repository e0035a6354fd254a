"""IBM's devices as Qiskit Runtime recorded them, and Qiskit Aer's noise models of them.

The devices of the paper's Appendix G. Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from qpa_exp.errors import InputError
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from jaxtyping import Float
    from qiskit_aer.noise import NoiseModel
    from torch import Tensor

RECORDED = {"fake_torino": "FakeTorino", "fake_fez": "FakeFez"}
"""The classes of Qiskit Runtime, by ``qpa.device``."""
NOISES: Registry[str | None] = Registry(
    "qpa.noise", {"none": None, "ibm_torino": "fake_torino", "ibm_fez": "fake_fez"}
)
"""The recorded device behind each ``qpa.noise``."""


@cache
def snapshot(name: str) -> Any:
    """Return the recorded device of that name in :data:`RECORDED`, a Qiskit backend."""
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, RECORDED[name])()


def record_of(name: str | None) -> dict[str, str]:
    """Return the device's version and the day of its record, by its name.

    {} where it is none of them.
    """
    if name not in RECORDED:
        return {}
    device = snapshot(name)
    day = device.properties().last_update_date.date().isoformat()
    return {name: f"{device.backend_version} ({day})"}


@cache
def noise_model(name: str) -> NoiseModel:
    """Build the noise model of a recorded device: it takes seconds, once."""
    from qiskit_aer.noise import NoiseModel

    return NoiseModel.from_backend(snapshot(name))


def restrict(model: NoiseModel, qubits: Collection[int]) -> NoiseModel:
    """Return the model's errors on these qubits alone: Aer copies a whole device's at every run."""
    from qiskit_aer.noise import NoiseModel

    small = NoiseModel(basis_gates=model.basis_gates)
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


class NoiseOfGates:
    """A noise model read as channels: what follows each gate on each qubit.

    Aer has no public way to ask a model for its errors, here and in :func:`restrict`.
    """

    def __init__(self, model: NoiseModel) -> None:
        self._local, self._everywhere = model._local_quantum_errors, model._default_quantum_errors
        self._readout, self._any_readout = model._local_readout_errors, model._default_readout_error

    def after(self, gate: str, qubits: tuple[int, ...]) -> Float[Tensor, "strings strings"] | None:
        """Return the channel that follows a gate, over Pauli strings; None where the gate is ideal.

        Raises:
            InputError: it acts on other qubits than the gate, or on more than two.
        """
        import torch
        from qiskit.quantum_info import PTM

        error = self._local.get(gate, {}).get(qubits, self._everywhere.get(gate))
        if error is None:
            return None
        if error.num_qubits != len(qubits) or len(qubits) > 2:
            raise InputError(
                f"the noise model's error of {gate} acts on {error.num_qubits} qubits: "
                "qpa.backend=density_matrix takes errors on the gate's own one or two qubits."
            )
        channel = torch.from_numpy(PTM(error).data.real.copy())
        if len(qubits) == 2:  # Qiskit's last qubit is the most significant, ours the first
            channel = channel.view(4, 4, 4, 4).permute(1, 0, 3, 2).reshape(16, 16)
        return channel

    def confusion(self, qubit: int) -> Float[Tensor, "2 2"]:
        """Return the probability of reading n (row) where the qubit is in m (column)."""
        import torch

        error = self._readout.get((qubit,), self._any_readout)
        table = [[1.0, 0.0], [0.0, 1.0]] if error is None else error.probabilities
        return torch.as_tensor(table, dtype=torch.float64).mT.contiguous()
