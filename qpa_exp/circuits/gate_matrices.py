"""The matrices of :data:`~qpa_exp.circuits.gates.GATES`."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qpa_exp.circuits.ansatz import GATES

_PAULIS: dict[str, list[list[complex]]] = {
    "I": [[1, 0], [0, 1]],
    "X": [[0, 1], [1, 0]],
    "Y": [[0, -1j], [1j, 0]],
    "Z": [[1, 0], [0, -1]],
}


def pauli_matrix(letters: str) -> Complex[Tensor, "_ _"]:
    """The Kronecker product of Pauli matrices, one letter of ``IXYZ`` a qubit, complex128."""
    each = [
        torch.tensor(_PAULIS[letter], dtype=torch.complex128, device="cpu") for letter in letters
    ]
    return reduce(torch.kron, each)


def gate_matrix(name: str, angle: Float[Tensor, "*batch"]) -> Complex[Tensor, "*batch _ _"]:
    """The matrices of a gate, differentiable in ``angle``.

    Args:
        name: in :data:`GATES`.
        angle: in radians; where the gate has none, only the shape counts.
    """
    kind = GATES[name]
    dtype = torch.complex128 if angle.dtype == torch.float64 else torch.complex64
    if kind.fixed is not None:
        fixed = torch.tensor(kind.fixed, dtype=dtype, device=angle.device)
        return fixed.expand(*angle.shape, *fixed.shape)
    assert kind.pauli is not None
    pauli = pauli_matrix(kind.pauli).to(angle.device, dtype)
    one = torch.eye(len(pauli), dtype=dtype, device=angle.device)
    half = angle[..., None, None] / 2
    matrix = torch.cos(half) * one - 1j * torch.sin(half) * pauli
    return _controlled(matrix) if kind.controlled else matrix


def generator_matrix(name: str) -> Complex[Tensor, "d d"]:
    """G of a gate that turns: dU/dangle = G U. Complex128; -i/2 P, or that where it is not idle."""
    kind = GATES[name]
    assert kind.pauli is not None
    half = -0.5j * pauli_matrix(kind.pauli)
    return torch.nn.functional.pad(half, (len(half), 0) * 2) if kind.controlled else half


def _controlled(matrix: Complex[Tensor, "*batch d d"]) -> Complex[Tensor, "*batch _ _"]:
    size = matrix.shape[-1]
    whole = torch.nn.functional.pad(matrix, (size, 0, size, 0))
    idle = torch.arange(size, device=matrix.device)
    projector = torch.zeros(2 * size, 2 * size, dtype=matrix.dtype, device=matrix.device)
    projector[idle, idle] = 1
    return whole + projector
