"""What a circuit is: the ansatz as a list of moments, and as a list of gates.

An ansatz is one repetition of the circuit, a tuple of moments in the order in which they act:
``"ry"`` rotates every qubit, each by an angle of its own; ``"cnot_chain"`` is CNOT(1, 2), then
CNOT(2, 3), ..., CNOT(N-1, N). A new ansatz is a new line in :data:`ANSATZE`; every back end reads
it from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qpa_exp.config import Ansatz

Moment = Literal["ry", "cnot_chain"]
ROTATIONS: frozenset[str] = frozenset({"ry"})

ANSATZE: dict[Ansatz, tuple[Moment, ...]] = {
    Ansatz.ry: ("ry", "cnot_chain"),  # Eq. 1
}


@dataclass(frozen=True)
class Gate:
    """One gate: its qubits counted from 0 (the paper's qubit 1), its angle's place in theta."""

    name: str
    qubits: tuple[int, ...]
    angle: tuple[int, int, int] | None = None
    """(layer, rotation, qubit): an index into theta; None for a gate without an angle."""


def n_rotations(ansatz: Ansatz) -> int:
    """Rotation moments in one repetition."""
    return sum(moment in ROTATIONS for moment in ANSATZE[ansatz])


def theta_shape(ansatz: Ansatz, n_qubits: int, n_layers: int) -> tuple[int, int, int]:
    """The shape of the circuit's angles: (n_layers, rotations in a layer, n_qubits)."""
    return (n_layers, n_rotations(ansatz), n_qubits)


def gates(ansatz: Ansatz, n_qubits: int, n_layers: int) -> Iterator[Gate]:
    """Every gate of the circuit, in the order in which they act on |0...0>."""
    for layer in range(n_layers):
        rotation = 0
        for moment in ANSATZE[ansatz]:
            if moment in ROTATIONS:
                for qubit in range(n_qubits):
                    yield Gate(moment, (qubit,), (layer, rotation, qubit))
                rotation += 1
            else:
                for qubit in range(n_qubits - 1):
                    yield Gate("cx", (qubit, qubit + 1))
