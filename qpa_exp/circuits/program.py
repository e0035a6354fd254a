"""One repetition of an ansatz, made ready for the state vector: three kinds of operations.

Rotations of different qubits become one :class:`Rotations`; CNOTs, X and SWAPs, however many, one
:class:`Permutation` of the basis states; any other gate stands alone as :class:`SingleGate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from qpa_exp.circuits.ansatz import Gate, layer_gates
from qpa_exp.circuits.gates import GATES
from qpa_exp.circuits.kronecker import no_grad_tensor

_PERMUTING = ("cx", "x", "swap")


@dataclass(frozen=True)
class Rotations:
    """At most one rotation of every qubit."""

    axes: tuple[str, ...]
    """The Pauli letter of each qubit; any, with angle None, where a qubit is not turned."""
    angles: tuple[int | None, ...]
    """Of each qubit, its place among the layer's angles (rotations times qubits)."""

    @property
    def places(self) -> slice | None:
        """The angles as one slice, where they lie side by side."""
        start = self.angles[0]
        if start is None or self.angles != tuple(range(start, start + len(self.angles))):
            return None
        return slice(start, start + len(self.angles))


@dataclass(frozen=True)
class Permutation:
    """Gates that move basis states, in the order in which they act."""

    n_qubits: int
    gates: tuple[tuple[str, tuple[int, ...]], ...]

    def order(self, device: torch.device) -> Int[Tensor, " states"]:
        """Amplitude y of the new state is amplitude ``order[y]`` of the old one."""
        return _move(self.n_qubits, tuple(reversed(self.gates)), device)

    def inverse(self, device: torch.device) -> Int[Tensor, " states"]:
        """The same for the way back. Every gate is its own inverse."""
        return _move(self.n_qubits, self.gates, device)


@dataclass(frozen=True)
class SingleGate:
    """A gate of no special kind; ``angle`` is its place among the layer's angles."""

    name: str
    qubits: tuple[int, ...]
    angle: int | None


Operation = Rotations | Permutation | SingleGate


@cache
def compile_layer(ansatz: str, n_qubits: int) -> tuple[Operation, ...]:
    """The operations of one repetition, in the order in which they act."""
    operations: list[Operation] = []
    pending: list[Gate] = []
    kind = ""
    for gate in layer_gates(ansatz, n_qubits):
        new = _kind(gate)
        turned = {qubit for other in pending for qubit in other.qubits}
        fits = new == kind and (kind == "permutation" or gate.qubits[0] not in turned)
        if pending and (kind == "single" or not fits):
            operations.append(_operation(kind, pending, n_qubits))
            pending = []
        pending.append(gate)
        kind = new
    if pending:
        operations.append(_operation(kind, pending, n_qubits))
    return tuple(operations)


def _kind(gate: Gate) -> str:
    if gate.name in _PERMUTING:
        return "permutation"
    return "rotation" if GATES[gate.name].shifts and len(gate.qubits) == 1 else "single"


def _operation(kind: str, gates: list[Gate], n_qubits: int) -> Operation:
    if kind == "permutation":
        return Permutation(n_qubits, tuple((gate.name, gate.qubits) for gate in gates))
    if kind == "single":
        (gate,) = gates
        return SingleGate(gate.name, gate.qubits, _place(gate, n_qubits))
    by_qubit = {gate.qubits[0]: gate for gate in gates}
    idle_axis = GATES[gates[0].name].pauli
    axes = [GATES[by_qubit[q].name].pauli if q in by_qubit else idle_axis for q in range(n_qubits)]
    places = [_place(by_qubit[q], n_qubits) if q in by_qubit else None for q in range(n_qubits)]
    return Rotations(tuple(str(axis) for axis in axes), tuple(places))


def _place(gate: Gate, n_qubits: int) -> int | None:
    return None if gate.angle is None else gate.angle[1] * n_qubits + gate.angle[2]


@lru_cache(maxsize=16)
def _move(
    n_qubits: int, gates: tuple[tuple[str, tuple[int, ...]], ...], device: torch.device
) -> Int[Tensor, " states"]:
    """Where the gates, one after the other, take each basis state."""
    index = torch.arange(2**n_qubits, device=device, dtype=torch.int32)
    for name, qubits in gates:
        places = [n_qubits - 1 - qubit for qubit in qubits]  # the first qubit is the highest bit
        if name == "x":
            index = index ^ (1 << places[0])
        elif name == "cx":
            index = index ^ (((index >> places[0]) & 1) << places[1])
        else:
            differ = ((index >> places[0]) ^ (index >> places[1])) & 1
            index = index ^ ((differ << places[0]) | (differ << places[1]))
    return no_grad_tensor(index)
