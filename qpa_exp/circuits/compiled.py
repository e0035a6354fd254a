"""A circuit whose whole way forth or back is one compiled call: few qubits, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qpa_exp.circuits import kernels
from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.program import Operation, Permutation, Rotations, SingleGate, compile_layer
from qpa_exp.loops import share_out

MOST_QUBITS = 16
"""Above, a state no longer fits near one core, and products that all cores share are faster."""

_WORTH_THREADS = 2**21
"""Amplitudes times angles of all circuits together, from which threads are started."""

_CPU = torch.device("cpu")
_AXES = {"X": kernels.X, "Y": kernels.Y, "Z": kernels.Z}


def takes(theta: Tensor, ansatz: str, n_qubits: int) -> bool:
    """Whether circuits of these angles can be compiled: rotations and permutations alone."""
    if theta.device.type != "cpu" or theta.dtype not in (torch.float32, torch.float64):
        return False
    return n_qubits <= MOST_QUBITS and not any(
        isinstance(operation, SingleGate) for operation in compile_layer(ansatz, n_qubits)
    )


@dataclass(frozen=True)
class Layer:
    """One repetition of an ansatz as :mod:`~qpa_exp.circuits.kernels` take it.

    The attributes are their arguments.
    """

    axes: Int[np.ndarray, "moments qubits"]
    places: Int[np.ndarray, "moments qubits"]
    front: int
    swap: Int[np.ndarray, " states"]
    unswap: Int[np.ndarray, " states"]
    then: Int[np.ndarray, "moments states"]
    before: Int[np.ndarray, "moments states"]


@lru_cache(maxsize=32)
def make_layer(ansatz: str, n_qubits: int) -> Layer:
    """The layer of this ansatz."""
    moments = _moments(compile_layer(ansatz, n_qubits), n_qubits)
    front = n_qubits // 2
    states = np.arange(2**n_qubits, dtype=np.int32)
    swap = _exchange(states, n_qubits, front)
    unswap = _exchange(states, n_qubits, n_qubits - front)
    then = np.stack([unswap if order is None else unswap[order] for _, order in moments])
    angles = [[-1 if a is None else a for a in rotations.angles] for rotations, _ in moments]
    places = np.array(angles)
    letters = [[_AXES[letter] for letter in rotations.axes] for rotations, _ in moments]
    return Layer(
        axes=np.where(places < 0, kernels.IDLE, np.array(letters)).astype(np.int8),
        places=places,
        front=front,
        swap=swap,
        unswap=unswap,
        then=then,
        before=np.argsort(then, axis=1).astype(np.int32),
    )


def _moments(
    operations: Sequence[Operation], n_qubits: int
) -> list[tuple[Rotations, np.ndarray | None]]:
    """Rotations, each with the permutation that follows it; idle ones before a lone permutation."""
    moments: list[tuple[Rotations, np.ndarray | None]] = []
    for operation in operations:
        if isinstance(operation, Rotations):
            moments.append((operation, None))
        elif isinstance(operation, Permutation):
            if not moments or moments[-1][1] is not None:
                moments.append((Rotations(("Y",) * n_qubits, (None,) * n_qubits), None))
            moments[-1] = (moments[-1][0], operation.order(_CPU).numpy())
    return moments


def _exchange(states: np.ndarray, n_qubits: int, first: int) -> np.ndarray:
    """Where to read what stands in order with the ``first`` qubits of the old index last."""
    rest = n_qubits - first
    return ((states & (2**first - 1)) << rest) | (states >> first)


class CompiledProgram:
    """Circuits with their angles put in, as :class:`~qpa_exp.circuits.running.Program`."""

    def __init__(
        self, theta: Float[Tensor, "batch layers angles"], ansatz: str, n_qubits: int
    ) -> None:
        self.layer, self.theta = make_layer(ansatz, n_qubits), theta.detach().contiguous().numpy()
        self.dtype = theta.dtype if is_real(ansatz) else theta.dtype.to_complex()
        self.n_states = 2**n_qubits

    def run(self) -> Shaped[Tensor, "batch states"]:
        """The amplitudes at the end."""
        states = torch.empty(len(self.theta), self.n_states, dtype=self.dtype)
        at, seen = self.layer, _in_planes(states)
        self._each(
            lambda first, last: kernels.forth(
                self.theta, at.axes, at.places, at.front, at.swap, at.then, seen,
                first, last,
            )
        )  # fmt: skip
        return states

    def slopes(
        self,
        theta: Float[Tensor, "batch layers angles"],
        states: Shaped[Tensor, "batch states"],
        grad: Float[Tensor, "batch states"],
    ) -> Float[Tensor, "batch layers angles"]:
        """dL/dtheta from the amplitudes at the end and dL/dp."""
        at, slopes = self.layer, torch.zeros_like(theta)
        pull = grad.to(theta.dtype).contiguous().numpy()
        seen, found = _in_planes(states), slopes.numpy()
        self._each(
            lambda first, last: kernels.back(
                self.theta, at.axes, at.places, at.front, at.unswap, at.before, seen, pull,
                found, first, last,
            )
        )  # fmt: skip
        return slopes

    def _each(self, do: Callable[[int, int], None]) -> None:
        large = self.theta.size * self.n_states >= _WORTH_THREADS
        share_out(do, len(self.theta), threads=large)


def _in_planes(states: Shaped[Tensor, "batch states"]) -> Float[np.ndarray, "batch states planes"]:
    """The same memory, real and imaginary part side by side."""
    found = states.detach()
    found = torch.view_as_real(found) if found.is_complex() else found.unsqueeze(-1)
    return found.numpy()
