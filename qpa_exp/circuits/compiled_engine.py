"""The state vector on a CPU, a circuit's whole way forth or back in one compiled call.

For circuits of rotations of one qubit and of gates that move basis states alone, such as the
paper's. :mod:`~qpa_exp.circuits.torch_engine` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits import compiled_loops as loops
from qpa_exp.circuits.ansatz import GATES, Ansatz, Gate, inverse_of, order_of
from qpa_exp.machine import share_out

_WORTH_THREADS = 2**21
"""Amplitudes times angles of all circuits together, from which threads are started."""

_AXES = {"X": loops.X, "Y": loops.Y, "Z": loops.Z}

Angles = Float[Tensor, "batch layers rotations qubits"]


def takes(theta: Angles, ansatz: Ansatz) -> bool:
    """Whether circuits of these angles can be compiled."""
    return (
        theta.device.type == "cpu"
        and theta.dtype in (torch.float32, torch.float64)
        and all(_compiles(moment.gate) for moment in ansatz.moments)
    )


def _compiles(gate: str) -> bool:
    kind = GATES[gate]
    return kind.permutes or (kind.pauli in _AXES and not kind.controlled)


def amplitudes(theta: Angles, ansatz: Ansatz) -> Shaped[Tensor, "batch states"]:
    """The amplitudes at the end."""
    states = torch.empty(
        len(theta),
        2 ** theta.shape[-1],
        dtype=theta.dtype if ansatz.is_real else theta.dtype.to_complex(),
    )
    at, angles, seen = _layer(ansatz, theta.shape[-1]), _by_layer(theta), _in_planes(states)
    _each(
        angles,
        lambda first, last: loops.forth(
            angles, at.axes, at.places, at.front, at.swap, at.then, seen, first, last
        ),
    )
    return states


def slopes(
    theta: Angles,
    ansatz: Ansatz,
    states: Shaped[Tensor, "batch states"],
    grad: Float[Tensor, "batch states"],
) -> Angles:
    """dL/dtheta from the amplitudes at the end and dL/dp."""
    found = torch.zeros_like(theta, memory_format=torch.contiguous_format)
    at, angles, added = _layer(ansatz, theta.shape[-1]), _by_layer(theta), _by_layer(found)
    seen, pull = _in_planes(states), grad.to(theta.dtype).contiguous().numpy()
    _each(
        angles,
        lambda first, last: loops.back(
            angles, at.axes, at.places, at.front, at.unswap, at.before, seen, pull, added,
            first, last,
        ),
    )  # fmt: skip
    return found


def _each(angles: np.ndarray, do: Callable[[int, int], None]) -> None:
    """Circuit after circuit, or shared out among threads where there is much to do."""
    n_qubits = angles.shape[-1]
    share_out(do, len(angles), threads=angles.size << n_qubits >= _WORTH_THREADS)


def _by_layer(theta: Angles) -> Float[np.ndarray, "batch layers angles"]:
    return theta.detach().contiguous().flatten(2).numpy()


def _in_planes(states: Shaped[Tensor, "batch states"]) -> Float[np.ndarray, "batch states planes"]:
    """The same memory, real and imaginary part side by side."""
    found = states.detach()
    found = torch.view_as_real(found) if found.is_complex() else found.unsqueeze(-1)
    return found.numpy()


# --- one repetition, as the loops take it -----------------------------------------------------


class _Layer(NamedTuple):
    """The arguments of :mod:`~qpa_exp.circuits.compiled_loops` that do not change."""

    axes: np.ndarray
    places: np.ndarray
    front: int
    swap: np.ndarray
    unswap: np.ndarray
    then: np.ndarray
    before: np.ndarray


@lru_cache(maxsize=32)
def _layer(ansatz: Ansatz, n_qubits: int) -> _Layer:
    moments = _moments(ansatz, n_qubits)
    axes = np.array([moment.axes for moment in moments], dtype=np.int8)
    places = np.array([moment.places for moment in moments])
    front = n_qubits // 2
    states = np.arange(2**n_qubits, dtype=np.int32)
    swap, unswap = _exchange(states, n_qubits, front), _exchange(states, n_qubits, n_qubits - front)
    then = np.stack([unswap[order_of(moment.after, n_qubits)] for moment in moments])
    before = np.stack([inverse_of(order) for order in then])
    return _Layer(axes, places, front, swap, unswap, then, before)


class _Turns:
    """Rotations of different qubits, and the gates that then move the basis states."""

    def __init__(self, n_qubits: int) -> None:
        self.axes, self.places = [loops.IDLE] * n_qubits, [-1] * n_qubits
        self.after: list[Gate] = []


def _moments(ansatz: Ansatz, n_qubits: int) -> list[_Turns]:
    moments = [_Turns(n_qubits)]
    for gate in ansatz.gates(n_qubits, n_layers=1):
        if GATES[gate.name].permutes:
            moments[-1].after.append(gate)
            continue
        (qubit,) = gate.qubits
        if moments[-1].after or moments[-1].axes[qubit] != loops.IDLE:
            moments.append(_Turns(n_qubits))
        assert gate.angle is not None
        moments[-1].axes[qubit] = _AXES[str(GATES[gate.name].pauli)]
        moments[-1].places[qubit] = gate.angle[1] * n_qubits + gate.angle[2]
    return moments


def _exchange(states: np.ndarray, n_qubits: int, first: int) -> np.ndarray:
    """Where to read what stands in order with the ``first`` qubits of the old index last."""
    rest = n_qubits - first
    return ((states & (2**first - 1)) << rest) | (states >> first)
