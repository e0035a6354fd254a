"""What a circuit is: the ansatz as a list of moments, and the circuit as a list of gates.

An ansatz is one repetition of the circuit: a tuple of moments, in the order in which they act. A
moment is one gate on several places. A new ansatz is a new line in :data:`ANSATZE`; every back end
reads it from there, as the list that :func:`gates` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qpa_exp.circuits.gates import GATES
from qpa_exp.errors import InputError

NO_CIRCUIT = ("none", "classical", "gaussian")
"""The controls in the circuit's place that measure nothing."""
UNTRAINED = (*NO_CIRCUIT, "frozen")
"""The controls without angles to train."""


def every_qubit(n_qubits: int) -> list[tuple[int, ...]]:
    """One place for each qubit."""
    return [(qubit,) for qubit in range(n_qubits)]


def neighbours(n_qubits: int) -> list[tuple[int, ...]]:
    """(1, 2), then (2, 3), ..., (N-1, N): none where there is one qubit alone."""
    return [(qubit, qubit + 1) for qubit in range(n_qubits - 1)]


def ring(n_qubits: int) -> list[tuple[int, ...]]:
    """The neighbours, and then (N, 1); none where there is one qubit alone."""
    closing = [(n_qubits - 1, 0)] if n_qubits > 1 else []
    return neighbours(n_qubits) + closing


@dataclass(frozen=True)
class Moment:
    """One gate of :data:`GATES` on each of the places that ``where`` lists for N qubits.

    A gate that turns takes the angle of its last qubit, so a moment has N angles.
    """

    gate: str
    where: Callable[[int], list[tuple[int, ...]]]

    @property
    def has_angles(self) -> bool:
        """Whether its gates turn by angles."""
        return GATES[self.gate].has_angle


RX, RY, RZ = (Moment(gate, every_qubit) for gate in ("rx", "ry", "rz"))
CNOT_CHAIN = Moment("cx", neighbours)

ANSATZE: dict[str, tuple[Moment, ...]] = {
    "ry": (RY, CNOT_CHAIN),  # Eq. 1
    "rx": (RX, CNOT_CHAIN),  # Eq. 12
    "rx_rz": (RX, CNOT_CHAIN, RZ, CNOT_CHAIN),  # Eq. 13
    "ry_rz": (RY, CNOT_CHAIN, RZ, CNOT_CHAIN),  # Eq. 14
    "product": (RY,),  # a control: nothing entangles
}


@dataclass(frozen=True)
class Gate:
    """One gate: its qubits counted from 0 (the paper's qubit 1), its angle's place in theta."""

    name: str
    qubits: tuple[int, ...]
    angle: tuple[int, int, int] | None = None
    """(layer, rotation, qubit): an index into theta; None for a gate without an angle."""


def check_ansatz(ansatz: str) -> None:
    """Refuse a name that is neither an ansatz nor a control."""
    known = [*ANSATZE, *UNTRAINED]
    if ansatz not in known:
        raise InputError(f"qpa.ansatz={ansatz} is unknown: give one of {', '.join(known)}.")


def theta_shape(ansatz: str, n_qubits: int, n_layers: int) -> tuple[int, int, int]:
    """The shape of the circuit's angles: (n_layers, rotations in a layer, n_qubits)."""
    rotations = sum(moment.has_angles for moment in ANSATZE[ansatz])
    return (n_layers, rotations, n_qubits)


def layer_gates(ansatz: str, n_qubits: int, layer: int = 0) -> Iterator[Gate]:
    """The gates of one repetition, in the order in which they act."""
    rotation = 0
    for moment in ANSATZE[ansatz]:
        for qubits in moment.where(n_qubits):
            angle = (layer, rotation, qubits[-1]) if moment.has_angles else None
            yield Gate(moment.gate, qubits, angle)
        rotation += moment.has_angles


def gates(ansatz: str, n_qubits: int, n_layers: int) -> Iterator[Gate]:
    """Every gate of the circuit, in the order in which they act on |0...0>."""
    for layer in range(n_layers):
        yield from layer_gates(ansatz, n_qubits, layer)


def is_real(ansatz: str) -> bool:
    """Whether the circuit's amplitudes are real at all angles."""
    return all(GATES[moment.gate].is_real for moment in ANSATZE[ansatz])


def gates_without_shift(ansatz: str) -> list[str]:
    """The names of its gates whose slope the parameter-shift rule does not give."""
    kinds = {moment.gate: GATES[moment.gate] for moment in ANSATZE[ansatz]}
    return [name for name, kind in kinds.items() if kind.has_angle and not kind.shifts]
