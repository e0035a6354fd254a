"""Exact simulation of the circuit, fast enough to sit in a training step.

Rotations of many qubits are a few small matrix products (:mod:`qpa_exp.circuits.kronecker`), a
CNOT chain is one gather, and a circuit of R_Y alone stays real. The backward is the adjoint
method (Jones and Gacon 2020, arXiv:2009.02823): it takes the gates back one after the other
instead of keeping every state, so its memory does not grow with the circuit's depth.

The basis state |b_1 b_2 ... b_N> has the index with b_1 as its most significant bit.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpa_exp.circuits import kronecker
from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.gates import gate_matrix
from qpa_exp.circuits.kronecker import Factors
from qpa_exp.circuits.program import (
    Operation,
    Permutation,
    Rotations,
    SingleGate,
    compile_layer,
)
from qpa_exp.circuits.simulator import Simulator

_KEPT_BYTES = 2**24
"""States that the backward collects, so as to find the slopes of many layers in one product."""

States = Shaped[Tensor, "_ states"]


class Statevector(Simulator):
    """The default back end."""

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """|<i|psi(theta)>|^2 for every basis state i."""
        return probabilities(theta, self.ansatz)

    @property
    def bytes_needed(self) -> int:
        """The pair of states and its copies in the backward, the chain's indices, the slopes."""
        amplitude = 4 if is_real(self.ansatz) else 8
        return 2**self.n_qubits * (7 * amplitude + 2 * 4 + 3 * 4)


BACKEND = Statevector


def probabilities(
    theta: Float[Tensor, "*batch layers rotations qubits"], ansatz: str = "ry"
) -> Float[Tensor, "*batch states"]:
    """|<i|psi(theta)>|^2 for every basis state i (Eq. 1), differentiable once in theta.

    Args:
        theta: angles in radians, one for each repetition, rotation moment and qubit; any batch.
        ansatz: the circuit's layer, a name of ``ANSATZE``.

    Returns:
        2^N probabilities, in the order of the basis states' indices; they sum to 1.
    """
    batch, shape = theta.shape[:-3], theta.shape[-3:]
    flat = theta.reshape(-1, shape[0], shape[1] * shape[2])
    if not torch.is_autocast_enabled(theta.device.type):
        return _Probabilities.apply(flat, ansatz, shape[2]).view(*batch, -1)
    with torch.autocast(theta.device.type, enabled=False):  # products of amplitudes stay precise
        return _Probabilities.apply(flat.float(), ansatz, shape[2]).view(*batch, -1)


class _Probabilities(torch.autograd.Function):
    """Angles (batch, layers, angles of a layer) to probabilities (batch, 2^N)."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ansatz: str, n_qubits: int) -> Tensor:
        operations = compile_layer(ansatz, n_qubits)
        dtype = _dtype(theta.dtype, ansatz)
        states = theta.new_zeros(len(theta), 2**n_qubits, dtype=dtype)
        states[:, 0] = 1
        prepared = [_prepare(operation, theta, dtype) for operation in operations]
        forth = [_forth(operation, p) for operation, p in zip(operations, prepared, strict=True)]
        spare = kronecker.spare_for(states)
        for layer in range(theta.shape[1]):
            for operation, factors in zip(operations, forth, strict=True):
                states, spare = _apply(operation, states, factors[layer % len(factors)], spare)
        ctx.save_for_backward(theta, states)
        ctx.ansatz, ctx.n_qubits, ctx.prepared = ansatz, n_qubits, prepared
        return _abs2(states) if dtype.is_complex else states.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(grad.device.type, enabled=False):
            return _Adjoint(ctx, grad).run(), None, None


def _dtype(angles: torch.dtype, ansatz: str) -> torch.dtype:
    return angles if is_real(ansatz) else angles.to_complex()


def _abs2(states: States) -> Float[Tensor, "_ states"]:
    return torch.view_as_real(states).square().sum(-1)


# --- forward ----------------------------------------------------------------------------------


def _prepare(operation: Operation, theta: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What an operation needs, made for all layers at once."""
    by_layer = theta.transpose(0, 1)
    if isinstance(operation, Rotations):
        return kronecker.rotation_matrices(_angles(operation, by_layer), operation.axes, dtype)
    if isinstance(operation, Permutation):
        return [operation.order(theta.device), operation.inverse(theta.device)]
    matrix = gate_matrix(operation.name, by_layer[..., operation.angle or 0])
    return [(matrix if dtype.is_complex else matrix.real).contiguous()]


def _forth(operation: Operation, prepared: list[Tensor]) -> Factors:
    """The factors of each layer; those of a permutation are the same in all."""
    if isinstance(operation, Rotations):
        return kronecker.by_layer(prepared)
    if isinstance(operation, Permutation):
        return [(prepared[0],)]
    return [(matrix,) for matrix in prepared[0].unbind()]


def _back(operation: Operation, prepared: list[Tensor]) -> Factors:
    """The inverses' factors, for states and, after them, conjugated cotangents."""
    if isinstance(operation, Rotations):
        return kronecker.inverse_by_layer(prepared)
    if isinstance(operation, Permutation):
        return [(prepared[1],)]
    twice = torch.cat([prepared[0].conj(), prepared[0]], dim=1)
    return [(matrix.mT,) for matrix in twice.unbind()]


def _angles(operation: Rotations, theta: Tensor) -> Tensor:
    """The moment's angles of each qubit; 0 where a qubit is not turned."""
    if operation.places is not None:
        return theta[..., operation.places]
    turned = torch.tensor([place is not None for place in operation.angles], device=theta.device)
    return theta[..., [place or 0 for place in operation.angles]] * turned


def _apply(
    operation: Operation, states: States, factors: tuple[Tensor, ...], spare: States | None
) -> tuple[States, States | None]:
    """The new states, and the buffer that the next operation may write over."""
    if isinstance(operation, Rotations):
        return kronecker.apply(states, factors, spare)
    if isinstance(operation, SingleGate):
        return _apply_single(states, factors[0], operation.qubits), spare
    if spare is None:
        return states.index_select(1, factors[0]), None
    return torch.index_select(states, 1, factors[0], out=spare), states


def _apply_single(states: States, matrix: Tensor, qubits: tuple[int, ...]) -> States:
    """Apply a (batch, d, d) matrix to some qubits."""
    leading = _lead(states, qubits)
    return _unlead(torch.bmm(matrix, leading), qubits)


def _lead(states: States, qubits: tuple[int, ...]) -> Shaped[Tensor, "_ d rest"]:
    """The state with these qubits as its first axis."""
    n_qubits = states.shape[1].bit_length() - 1
    tensor = states.view(len(states), *[2] * n_qubits)
    front = tensor.movedim([1 + q for q in qubits], list(range(1, 1 + len(qubits))))
    return front.reshape(len(states), 2 ** len(qubits), -1)


def _unlead(leading: Shaped[Tensor, "_ d rest"], qubits: tuple[int, ...]) -> States:
    n_qubits = leading[0].numel().bit_length() - 1
    tensor = leading.view(len(leading), *[2] * n_qubits)
    back = tensor.movedim(list(range(1, 1 + len(qubits))), [1 + q for q in qubits])
    return back.reshape(len(leading), -1)


# --- backward ---------------------------------------------------------------------------------


class _Adjoint:
    """Takes psi and its cotangent lambda = dL/dpsi back through the circuit, side by side.

    The slope of an angle is Re <lambda| -i P / 2 |psi>, both taken right after its gate. Lambda is
    kept conjugated, so that no product needs to conjugate anything.
    """

    def __init__(self, ctx: Any, grad: Tensor) -> None:
        self.theta, states = ctx.saved_tensors
        self.batch = len(self.theta)
        self.operations = compile_layer(ctx.ansatz, ctx.n_qubits)
        self.sizes = kronecker.group_sizes(ctx.n_qubits)
        self.back = [_back(o, p) for o, p in zip(self.operations, ctx.prepared, strict=True)]
        self.pair = torch.cat([states, (2 * grad * states).conj()])
        self.spare = kronecker.spare_for(self.pair)
        self.slopes = torch.zeros_like(self.theta)
        self.pairs: dict[int, list[Tensor]] = {}
        self.pair_bytes = 0
        self.overlaps: dict[int, list[list[Tensor]]] = {}

    def run(self) -> Tensor:
        """dL/dtheta, in theta's shape (batch, layers, angles of a layer)."""
        for layer in reversed(range(self.theta.shape[1])):
            for index in reversed(range(len(self.operations))):
                factors = self.back[index]
                self._take_back(index, factors[layer % len(factors)], layer)
        self._reduce_pairs()
        for index, overlaps in self.overlaps.items():
            self._add(index, overlaps)
        return self.slopes

    def _take_back(self, index: int, factors: tuple[Tensor, ...], layer: int) -> None:
        operation = self.operations[index]
        if isinstance(operation, SingleGate):
            self._take_back_single(operation, factors, layer)
        elif isinstance(operation, Rotations) and len(self.sizes) > 2:
            self._take_back_groups(index, factors)
        else:
            if isinstance(operation, Rotations):
                self._keep(index)
            self.pair, self.spare = _apply(operation, self.pair, factors, self.spare)

    # Few qubits: keep the pairs of many layers, and reduce them together.

    def _keep(self, index: int) -> None:
        self.pairs.setdefault(index, []).append(self.pair)
        self.pair_bytes += self.pair.numel() * self.pair.element_size()
        if self.pair_bytes > _KEPT_BYTES:
            self._reduce_pairs()

    def _reduce_pairs(self) -> None:
        for index, kept in self.pairs.items():
            pairs = torch.stack(kept).unflatten(1, (2, self.batch))
            psi, cotangent = (half.flatten(0, 1) for half in pairs.unbind(1))
            found = kronecker.overlaps(cotangent, psi, self.sizes)
            self.overlaps.setdefault(index, []).append(found)
        self.pairs, self.pair_bytes = {}, 0

    # Many qubits: each group's overlap while its axis leads, on the way back.

    def _take_back_groups(self, index: int, factors: tuple[Tensor, ...]) -> None:
        found = []
        for right in factors:
            psi, cotangent = self.pair[: self.batch], self.pair[self.batch :]
            found.append(kronecker.overlap_leading(cotangent, psi, right.shape[-1]))
            self.pair, self.spare = kronecker.apply_leading(self.pair, right, self.spare)
        self.overlaps.setdefault(index, []).append(found)

    def _add(self, index: int, overlaps: list[list[Tensor]]) -> None:
        """The slopes of one operation in all layers, from the last layer to the first."""
        operation = self.operations[index]
        assert isinstance(operation, Rotations)
        axes = _split(operation.axes, self.sizes)
        groups = [torch.cat(group) for group in zip(*overlaps, strict=True)]
        each = [kronecker.slopes(group, a) for group, a in zip(groups, axes, strict=True) if a]
        slopes = torch.cat(each, dim=-1).unflatten(0, (-1, self.batch)).flip(0).transpose(0, 1)
        if operation.places is not None:
            self.slopes[..., operation.places] = slopes
            return
        for qubit, place in enumerate(operation.angles):
            if place is not None:
                self.slopes[..., place] = slopes[..., qubit]

    # Any other gate: its slope through its own matrix.

    def _take_back_single(
        self, operation: SingleGate, factors: tuple[Tensor, ...], layer: int
    ) -> None:
        _, after = self.pair.split(self.batch)
        self.pair, self.spare = _apply(operation, self.pair, factors, self.spare)
        if operation.angle is None:
            return
        before, _ = self.pair.split(self.batch)
        left, right = _lead(after, operation.qubits), _lead(before, operation.qubits)
        overlap = torch.bmm(left, right.transpose(1, 2))
        with torch.enable_grad():
            angle = self.theta[:, layer, operation.angle].detach().requires_grad_()
            matrix = gate_matrix(operation.name, angle)
            matrix = matrix if overlap.is_complex() else matrix.real
            (slope,) = torch.autograd.grad((matrix * overlap).sum().real, angle)
        self.slopes[:, layer, operation.angle] += slope


def _split(axes: tuple[str, ...], sizes: list[int]) -> list[tuple[str, ...]]:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [axes[start : start + size] for start, size in zip(starts, sizes, strict=True)]
