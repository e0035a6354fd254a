"""The state vector's inner loops, compiled for the processor by Numba.

A circuit of few qubits is a few thousand additions: called one by one from Python, even the few
operations that it takes cost more than they compute. Here a whole circuit is one call, forth or
back, and the calling thread does it without the interpreter's lock.

Amplitudes lie in planes, (1, 2^N) real or (2, 2^N) real and imaginary, and so do cotangents. A
moment turns its first qubits where their partners lie far apart, moves the rest of the qubits to
the front, turns those, and moves everything back together with the permutation that follows: so
every inner loop runs over memory in order, many amplitudes at a time.

Arguments that the functions share, for C circuits of L layers with M moments of N qubits:
    theta: (C, L, angles of a layer) in radians.
    axes, places: (M, N); each qubit's axis, one of :data:`IDLE`, :data:`X`, :data:`Y` and
        :data:`Z`, and the place of its angle among the layer's.
    front: how many qubits are turned before the others come to the front.
    swap: (2^N,) places that bring the others to the front.
    then: (M, 2^N) places that move them back, and permute.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from qpa_exp.machine import compiled

IDLE, X, Y, Z = 0, 1, 2, 3

_PAIRS = np.array([
    [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    [[0, 0, 1, 1, -1], [1, 0, 0, 1, 1]],
    [[0, 0, 0, 1, 1], [1, 0, 1, 1, 1]],
    [[0, 0, 1, 0, -1], [0, 1, 1, 1, 1]],
])  # fmt: skip
"""By axis: what it turns against what, twice over: of the one its plane and its qubit's value, of
the other the same; and the sign of the sine. X turns real parts against the partners' imaginary
parts, Y parts of one kind, Z the parts of one amplitude."""


@compiled
@no_type_check
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
@no_type_check
def back(
    theta: Any, axes: Any, places: Any, front: Any, unswap: Any, before: Any, states: Any,
    grad: Any, slopes: Any, first: Any, last: Any,
) -> None:  # fmt: skip
    """Add dL/dtheta of circuits ``first`` to ``last`` to ``slopes``.

    ``unswap`` and ``before`` undo ``swap`` and ``then``; ``grad`` is dL/dp, (C, 2^N). The
    amplitudes and their cotangents go back side by side, and nothing is kept of the layers.
    """
    n_states, planes = states.shape[1:]
    n_qubits = axes.shape[1]
    here = np.empty((planes, n_states), states.dtype)
    there, towards, away = np.empty_like(here), np.empty_like(here), np.empty_like(here)
    turn = np.empty((2, n_qubits), theta.dtype)
    for circuit in range(first, last):
        here[:] = states[circuit].T
        for plane in range(planes):
            for i in range(n_states):
                towards[plane, i] = 2 * grad[circuit, i] * here[plane, i]
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
@no_type_check
def _half_angles(theta: Any, axes: Any, places: Any, turn: Any) -> None:
    """Write cosine and sine of half of each angle to ``turn``, (2, N)."""
    for qubit in range(axes.shape[0]):
        if axes[qubit] != IDLE:
            half = theta[places[qubit]] / 2
            turn[0, qubit], turn[1, qubit] = np.cos(half), np.sin(half)


@compiled
@no_type_check
def _move(old: Any, new: Any, places: Any) -> None:
    for plane in range(old.shape[0]):
        from_, to = old[plane], new[plane]
        for i in range(to.shape[0]):
            to[i] = from_[places[i]]


@compiled
@no_type_check
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
@no_type_check
def _turn_pairs(a: Any, b: Any, c: Any, s: Any) -> None:
    """(a, b) -> (c a - s b, s a + c b)."""
    for i in range(a.shape[0]):
        u, v = a[i], b[i]
        a[i] = c * u - s * v
        b[i] = s * u + c * v


@compiled
@no_type_check
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
@no_type_check
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
