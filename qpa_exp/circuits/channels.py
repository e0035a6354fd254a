"""Channels as real matrices over Pauli strings (Pauli transfer matrices).

A state of n qubits is the vector of tr(P rho) over the 4^n Pauli strings P; a gate or a noise
channel is a real matrix on it. The first qubit is the most significant digit, I X Y Z its values.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qpa_exp.circuits.gate_matrices import pauli_matrix
from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel


@cache
def pauli_strings(n_qubits: int) -> Complex[Tensor, "strings d d"]:
    """All Pauli strings of n qubits, in order."""
    letters = map("".join, product("IXYZ", repeat=n_qubits))
    return torch.stack([pauli_matrix(string) for string in letters])


def unitary_channel(matrix: Complex[Tensor, "*batch d d"]) -> Float[Tensor, "*batch _ _"]:
    """Of rho -> U rho U^dagger: entry (i, j) is tr(P_i U P_j U^dagger) / d. Differentiable."""
    strings = pauli_strings(matrix.shape[-1].bit_length() - 1).to(matrix.device, matrix.dtype)
    moved = matrix.unsqueeze(-3) @ strings @ matrix.mH.unsqueeze(-3)
    traces = torch.einsum("iab,...jba->...ij", strings, moved)
    return traces.real / matrix.shape[-1]


def _superoperator_channel(data: Any, n_qubits: int) -> Float[Tensor, "strings strings"]:
    """Of a superoperator as Qiskit stores it: columns stacked, the first qubit the lowest bit."""
    superoperator = torch.as_tensor(data, dtype=torch.complex128)
    strings = pauli_strings(n_qubits)
    reordered = _reversed_qubits(strings, n_qubits)
    columns = reordered.mT.flatten(1)  # vec(P), column by column
    moved = (columns @ superoperator.T).unflatten(-1, strings.shape[1:]).mT
    return torch.einsum("iab,jba->ij", reordered, moved).real / strings.shape[-1]


def _reversed_qubits(matrices: Tensor, n_qubits: int) -> Tensor:
    axes = list(range(n_qubits, 0, -1))
    tensor = matrices.view(len(matrices), *[2] * 2 * n_qubits)
    return tensor.permute(0, *axes, *[n_qubits + axis for axis in axes]).reshape(matrices.shape)


class DeviceNoise:
    """A Qiskit Aer noise model, read as channels: what follows each gate on each qubit."""

    def __init__(self, model: NoiseModel) -> None:
        """Refuses what one- and two-qubit channels do not cover."""
        # Aer has no public way to ask a model for the error of one gate.
        self._local = model._local_quantum_errors
        self._everywhere = model._default_quantum_errors
        self._readout = model._local_readout_errors
        self._readout_everywhere = model._default_readout_error
        self._channels: dict[tuple[str, tuple[int, ...]], Tensor | None] = {}

    def after(self, gate: str, qubits: tuple[int, ...]) -> Float[Tensor, "strings strings"] | None:
        """The channel that follows a gate; None where the gate is ideal."""
        key = (gate, qubits)
        if key not in self._channels:
            self._channels[key] = self._channel(gate, qubits)
        return self._channels[key]

    def _channel(self, gate: str, qubits: tuple[int, ...]) -> Tensor | None:
        from qiskit.quantum_info import SuperOp

        error = self._local.get(gate, {}).get(qubits, self._everywhere.get(gate))
        if error is None:
            return None
        if error.num_qubits != len(qubits) or len(qubits) > 2:
            raise InputError(
                f"the noise model's error of {gate} acts on {error.num_qubits} qubits: "
                "qpa.backend=density_matrix takes errors on the gate's own one or two qubits."
            )
        return _superoperator_channel(SuperOp(error).data, len(qubits))

    def confusion(self, qubit: int) -> Float[Tensor, "2 2"]:
        """The probability of reading n (row) where the qubit is in m (column)."""
        error = self._readout.get((qubit,), self._readout_everywhere)
        table = [[1.0, 0.0], [0.0, 1.0]] if error is None else error.probabilities
        return torch.as_tensor(table, dtype=torch.float64).mT.contiguous()
