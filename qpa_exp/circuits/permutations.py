"""Gates that only move basis states: however many there are, they are read as one order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

from qpa_exp.circuits.ansatz import Gate
from qpa_exp.circuits.gates import GATES


def order_of(gates: Iterable[Gate], n_qubits: int) -> Int32[np.ndarray, " states"]:
    """Where to read the amplitudes: number y of the new state is number ``order[y]`` of the old.

    Args:
        gates: that permute (``GATES[name].permutes``), in the order in which they act.
        n_qubits: of the state.

    Example:
        >>> order_of([Gate("cx", (0, 1))], n_qubits=2).tolist()
        [0, 1, 3, 2]
    """
    order = np.arange(2**n_qubits, dtype=np.int32)
    for gate in reversed(list(gates)):
        order = _before(gate, order, n_qubits)
    return order


def inverse_of(order: Int32[np.ndarray, " states"]) -> Int32[np.ndarray, " states"]:
    """The order that undoes this one."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=order.dtype)
    return inverse


def _before(gate: Gate, states: np.ndarray, n_qubits: int) -> np.ndarray:
    """Which basis states the gate takes to these."""
    fixed = GATES[gate.name].fixed
    assert fixed is not None
    comes_from = np.array([row.index(1) for row in fixed], dtype=np.int32)
    places = [n_qubits - 1 - qubit for qubit in gate.qubits]  # the first is the highest bit
    inside = np.zeros_like(states)
    for place in places:
        inside = 2 * inside + ((states >> place) & 1)
    moved = inside ^ comes_from[inside]  # the bits that change
    for place in reversed(places):
        states = states ^ ((moved & 1) << place)
        moved = moved >> 1
    return states
