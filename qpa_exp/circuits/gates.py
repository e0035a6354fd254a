"""The gates that a circuit may be made of: their matrices, and what is known of their angles.

A rotation is ``exp(-i angle/2 P)`` with P a Pauli string, one letter a qubit; a controlled one
applies it where its first qubit is 1. The first qubit is the more significant bit of the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Complex, Float
from torch import Tensor

_H = 1 / math.sqrt(2)
_PAULIS: dict[str, list[list[complex]]] = {
    "I": [[1, 0], [0, 1]],
    "X": [[0, 1], [1, 0]],
    "Y": [[0, -1j], [1j, 0]],
    "Z": [[1, 0], [0, -1]],
}


@dataclass(frozen=True)
class GateKind:
    """What a gate's name stands for: a rotation by its Pauli string, or a fixed matrix."""

    pauli: str | None = None
    controlled: bool = False
    fixed: tuple[tuple[complex, ...], ...] | None = None

    @property
    def has_angle(self) -> bool:
        """Whether it turns by an angle."""
        return self.pauli is not None

    @property
    def shifts(self) -> bool:
        """Whether two evaluations at angle +- pi/2 give its slope: half-angle Pauli rotations."""
        return self.has_angle and not self.controlled

    @property
    def is_real(self) -> bool:
        """Whether its matrix has real entries at every angle."""
        if self.pauli is not None:
            return self.pauli.count("Y") % 2 == 1
        assert self.fixed is not None
        return all(entry.imag == 0 for row in self.fixed for entry in row)


def _rows(*rows: tuple[complex | float | int, ...]) -> tuple[tuple[complex, ...], ...]:
    return tuple(tuple(complex(entry) for entry in row) for row in rows)


def _permutation(*images: int) -> tuple[tuple[complex, ...], ...]:
    return tuple(tuple(complex(j == image) for j in range(len(images))) for image in images)


GATES: dict[str, GateKind] = {
    "rx": GateKind("X"),
    "ry": GateKind("Y"),
    "rz": GateKind("Z"),
    "rxx": GateKind("XX"),
    "ryy": GateKind("YY"),
    "rzz": GateKind("ZZ"),
    "crx": GateKind("X", controlled=True),
    "cry": GateKind("Y", controlled=True),
    "crz": GateKind("Z", controlled=True),
    "id": GateKind(fixed=_permutation(0, 1)),
    "x": GateKind(fixed=_permutation(1, 0)),
    "z": GateKind(fixed=_rows((1, 0), (0, -1))),
    "h": GateKind(fixed=_rows((_H, _H), (_H, -_H))),
    "s": GateKind(fixed=_rows((1, 0), (0, 1j))),
    "sx": GateKind(fixed=_rows((0.5 + 0.5j, 0.5 - 0.5j), (0.5 - 0.5j, 0.5 + 0.5j))),
    "cx": GateKind(fixed=_permutation(0, 1, 3, 2)),
    "cz": GateKind(fixed=_rows((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, -1))),
    "swap": GateKind(fixed=_permutation(0, 2, 1, 3)),
}
"""By the names of OpenQASM and Qiskit."""


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


def _controlled(matrix: Complex[Tensor, "*batch d d"]) -> Complex[Tensor, "*batch _ _"]:
    size = matrix.shape[-1]
    whole = torch.nn.functional.pad(matrix, (size, 0, size, 0))
    idle = torch.arange(size, device=matrix.device)
    projector = torch.zeros(2 * size, 2 * size, dtype=matrix.dtype, device=matrix.device)
    projector[idle, idle] = 1
    return whole + projector
