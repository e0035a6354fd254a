"""The state vector on a CPU, a circuit's whole way forth or back in one compiled call.

For circuits of rotations of one qubit and of gates that move basis states alone, such as the
paper's. :mod:`~qpa_exp.circuits.torch_engine` does the rest.

A circuit of few qubits is a few thousand additions: called one by one from Python, even the few
operations that it takes cost more than they compute. Here the calling thread does a whole circuit
without the interpreter's lock.

Amplitudes lie in planes, (1, 2^N) real or (2, 2^N) real and imaginary, and so do cotangents. A
moment turns its first qubits where their partners lie far apart, moves the rest of the qubits to
the front, turns those, and moves everything back together with the permutation that follows: so
every inner loop runs over memory in order, many amplitudes at a time.

Arguments that the loops share, for C circuits of L layers with M moments of N qubits:
    theta: (C, L, angles of a layer) in radians.
    axes, places: (M, N); each qubit's axis, one of :data:`IDLE`, :data:`X`, :data:`Y` and
        :data:`Z`, and the place of its angle among the layer's.
    front: how many qubits are turned before the others come to the front.
    swap: (2^N,) places that bring the others to the front.
    then: (M, 2^N) places that move them back, and permute.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits.ansatz import GATES, Ansatz, Gate, inverse_of, order_of
from qpa_exp.machine import compiled, share_out

IDLE, X, Y, Z = 0, 1, 2, 3

_PAIRS = np.array([
    [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    [[0, 0, 1, 1, -1], [1, 0, 0, 1, 1]],
    [[0, 0, 0, 1, 1], [1, 0, 1, 1, 1]],
    [[0, 0, 1, 0, -1], [0, 1, 1, 1, 1]],
])  # fmt: skip
"""Which numbers a rotation turns: ``_PAIRS[axis, k] = (plane, value, plane, value, sign)``.

Plane 0 holds the amplitudes' real parts, plane 1 the imaginary ones. A rotation takes numbers in
pairs and turns each pair by half the angle times the sign. A pair's first number lies in the first
plane, where the qubit has the first value; its second number in the second plane, where the qubit
has the second value. Two planes have two kinds of pairs, k = 0 and 1; one plane has the first.
R_X pairs a real with an imaginary part, of both values of the qubit; R_Y pairs two real or two
imaginary parts; R_Z pairs the two parts of one amplitude."""


@compiled
def forth(
    theta: Any, axes: Any, places: Any, front: Any, swap: Any, then: Any, states: Any,
    first: Any, last: Any,
) -> None:  # fmt: skip
    """Write the amplitudes at the end of circuits ``first`` to ``last`` to ``states``.

    ``states`` is (C, 2^N, planes).
    """
    n_states, planes = states.shape[1:]
    n_qubits = axes.shape[1]
    here = np.empty((planes, n_states), states.dtype)
    there = np.empty_like(here)
    turn = np.empty((2, n_qubits), theta.dtype)
    for circuit in range(first, last):
        here[:] = 0
        here[0, 0] = 1
        for layer in range(theta.shape[1]):
            for moment in range(axes.shape[0]):
                _half_angles(theta[circuit, layer], axes[moment], places[moment], turn)
                _turn(here, axes[moment], turn, 0, front)
                _move(here, there, swap)
                _turn(there, axes[moment], turn, front, n_qubits)
                _move(there, here, then[moment])
        states[circuit] = here.T


@compiled
def back(
    theta: Any, axes: Any, places: Any, front: Any, unswap: Any, before: Any, states: Any,
    pull: Any, slopes: Any, first: Any, last: Any,
) -> None:  # fmt: skip
    """Add dL/dtheta of circuits ``first`` to ``last`` to ``slopes``.

    ``unswap`` and ``before`` undo ``swap`` and ``then``; ``pull`` is dL/dpsi, as ``states``. The
    amplitudes and their cotangents go back side by side, and nothing is kept of the layers.
    """
    n_states, planes = states.shape[1:]
    n_qubits = axes.shape[1]
    here = np.empty((planes, n_states), states.dtype)
    there, towards, away = np.empty_like(here), np.empty_like(here), np.empty_like(here)
    turn = np.empty((2, n_qubits), theta.dtype)
    for circuit in range(first, last):
        here[:] = states[circuit].T
        towards[:] = pull[circuit].T
        for layer in range(slopes.shape[1] - 1, -1, -1):
            for moment in range(axes.shape[0] - 1, -1, -1):
                at, found = places[moment], slopes[circuit, layer]
                _half_angles(theta[circuit, layer], axes[moment], at, turn)
                _move(here, there, before[moment])
                _move(towards, away, before[moment])
                _turn_back(there, away, axes[moment], turn, at, found, front, n_qubits)
                _move(there, here, unswap)
                _move(away, towards, unswap)
                _turn_back(here, towards, axes[moment], turn, at, found, 0, front)


@compiled
def _half_angles(theta: Any, axes: Any, places: Any, turn: Any) -> None:
    """Write cosine and sine of half of each angle to ``turn``, (2, N)."""
    for qubit in range(axes.shape[0]):
        if axes[qubit] != IDLE:
            half = theta[places[qubit]] / 2
            turn[0, qubit], turn[1, qubit] = np.cos(half), np.sin(half)


@compiled
def _move(old: Any, new: Any, places: Any) -> None:
    for plane in range(old.shape[0]):
        from_, to = old[plane], new[plane]
        for i in range(to.shape[0]):
            to[i] = from_[places[i]]


@compiled
def _turn(states: Any, axes: Any, turn: Any, first: Any, last: Any) -> None:
    """Turn qubits ``first`` to ``last``, which are the first ones of the states' index."""
    stride = states.shape[1]
    for qubit in range(first, last):
        stride //= 2
        if axes[qubit] != IDLE:
            for start in range(0, states.shape[1], 2 * stride):
                for plane in range(states.shape[0]):
                    one, at, other, there, sign = _PAIRS[axes[qubit], plane]
                    a, b = start + at * stride, start + there * stride
                    _turn_pairs(
                        states[one, a : a + stride], states[other, b : b + stride],
                        turn[0, qubit], turn[1, qubit] if sign > 0 else -turn[1, qubit],
                    )  # fmt: skip


@compiled
def _turn_pairs(a: Any, b: Any, c: Any, s: Any) -> None:
    """Turn each pair (a, b) into (c a - s b, s a + c b)."""
    for i in range(a.shape[0]):
        u, v = a[i], b[i]
        a[i] = c * u - s * v
        b[i] = s * u + c * v


@compiled
def _turn_back(
    states: Any, towards: Any, axes: Any, turn: Any, places: Any, slopes: Any, first: Any,
    last: Any,
) -> None:  # fmt: skip
    """Undo :func:`_turn` in the states and their cotangents; add the angles' slopes."""
    stride = states.shape[1]
    for qubit in range(first, last):
        stride //= 2
        if axes[qubit] != IDLE:
            slope = 0 * turn[0, qubit]
            for start in range(0, states.shape[1], 2 * stride):
                for plane in range(states.shape[0]):
                    one, at, other, there, sign = _PAIRS[axes[qubit], plane]
                    a, b = start + at * stride, start + there * stride
                    found = _turn_pairs_back(
                        states[one, a : a + stride], states[other, b : b + stride],
                        towards[one, a : a + stride], towards[other, b : b + stride],
                        turn[0, qubit], turn[1, qubit] if sign > 0 else -turn[1, qubit],
                    )  # fmt: skip
                    slope += found if sign > 0 else -found
            slopes[places[qubit]] += slope / 2


@compiled
def _turn_pairs_back(a: Any, b: Any, p: Any, q: Any, c: Any, s: Any) -> Any:
    """Undo :func:`_turn_pairs` in the pairs (a, b) and their cotangents (p, q).

    Returns:
        Twice the cotangents' product with d(a, b)/dangle = (-b, a) / 2, which is the same before
        the rotation as after it.
    """
    total = 0 * c
    for i in range(a.shape[0]):
        u, v, x, y = a[i], b[i], p[i], q[i]
        total += y * u - x * v
        a[i] = c * u + s * v
        b[i] = c * v - s * u
        p[i] = c * x + s * y
        q[i] = c * y - s * x
    return total


_WORTH_THREADS = 2**21
"""Amplitudes times angles of all circuits together, from which threads are started."""

_AXES = {"X": X, "Y": Y, "Z": Z}

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
    """Return the amplitudes at the end."""
    states = torch.empty(
        len(theta),
        2 ** theta.shape[-1],
        dtype=theta.dtype if ansatz.is_real else theta.dtype.to_complex(),
    )
    at, angles, seen = _layer(ansatz, theta.shape[-1]), _by_layer(theta), _in_planes(states)
    _each(
        angles,
        lambda first, last: forth(
            angles, at.axes, at.places, at.front, at.swap, at.then, seen, first, last
        ),
    )
    return states


def slopes(
    theta: Angles,
    ansatz: Ansatz,
    states: Shaped[Tensor, "batch states"],
    towards: Shaped[Tensor, "batch states"],
) -> Angles:
    """dL/dtheta from the amplitudes at the end, psi, and dL/dpsi."""
    found = torch.zeros_like(theta, memory_format=torch.contiguous_format)
    at, angles, added = _layer(ansatz, theta.shape[-1]), _by_layer(theta), _by_layer(found)
    seen, pull = _in_planes(states), _in_planes(towards.to(states.dtype).contiguous())
    _each(
        angles,
        lambda first, last: back(
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
    """Return the same memory, real and imaginary part side by side."""
    found = states.detach()
    found = torch.view_as_real(found) if found.is_complex() else found.unsqueeze(-1)
    return found.numpy()


# --- one repetition, as the loops take it -----------------------------------------------------


class _Layer(NamedTuple):
    """The arguments of the loops that do not change."""

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
    swap = states.reshape(2**front, -1).T.flatten()
    unswap = states.reshape(-1, 2**front).T.flatten()
    then = np.stack([unswap[order_of(moment.after, n_qubits)] for moment in moments])
    before = np.stack([inverse_of(order) for order in then])
    return _Layer(axes, places, front, swap, unswap, then, before)


class _Turns:
    """Rotations of different qubits, and the gates that then move the basis states."""

    def __init__(self, n_qubits: int) -> None:
        self.axes, self.places = [IDLE] * n_qubits, [-1] * n_qubits
        self.after: list[Gate] = []


def _moments(ansatz: Ansatz, n_qubits: int) -> list[_Turns]:
    moments = [_Turns(n_qubits)]
    for gate in ansatz.gates(n_qubits, n_layers=1):
        if GATES[gate.name].permutes:
            moments[-1].after.append(gate)
            continue
        (qubit,) = gate.qubits
        if moments[-1].after or moments[-1].axes[qubit] != IDLE:
            moments.append(_Turns(n_qubits))
        assert gate.angle is not None
        moments[-1].axes[qubit] = _AXES[str(GATES[gate.name].pauli)]
        moments[-1].places[qubit] = gate.angle[1] * n_qubits + gate.angle[2]
    return moments
