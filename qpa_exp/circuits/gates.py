"""The gates that a circuit may be made of, and what is known of their angles.

A rotation is ``exp(-i angle/2 P)`` with P a Pauli string, one letter a qubit; a controlled one
applies it where its first qubit is 1. The first qubit is the more significant bit of the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_H = 1 / math.sqrt(2)


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
    def permutes(self) -> bool:
        """Whether all that it does is to move basis states."""
        return self.fixed is not None and all(
            entry in (0, 1) for row in self.fixed for entry in row
        )

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
