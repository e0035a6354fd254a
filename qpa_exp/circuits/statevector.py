"""Exact simulation of the circuit, fast enough to sit in a training step.

Rotations of many qubits are a few small matrix products (:mod:`qpa_exp.circuits.kronecker`), a
CNOT chain is one gather, and a circuit of R_Y alone stays real. The backward is the adjoint
method (:mod:`qpa_exp.circuits.adjoint`).

The basis state |b_1 b_2 ... b_N> has the index with b_1 as its most significant bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpa_exp.circuits import kronecker
from qpa_exp.circuits.adjoint import Adjoint
from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.gates import gate_matrix
from qpa_exp.circuits.layouts import Layout, make_layout, permutation_index
from qpa_exp.circuits.program import Operation, Permutation, Rotations, compile_layer
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.circuits.single_gate import apply_single

Step = Callable[[Tensor, int], Tensor]
"""States and a layer's number to the states after one operation of that layer."""


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
    found: Tensor
    if torch.is_autocast_enabled(theta.device.type):
        with torch.autocast(theta.device.type, enabled=False):  # amplitudes stay precise
            found = _Probabilities.apply(flat.float(), ansatz, shape[2])
    else:
        found = _Probabilities.apply(flat, ansatz, shape[2])
    return found.view(*batch, -1)


class _Probabilities(torch.autograd.Function):
    """Angles (batch, layers, angles of a layer) to probabilities (batch, 2^N)."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ansatz: str, n_qubits: int) -> Tensor:
        dtype = theta.dtype if is_real(ansatz) else theta.dtype.to_complex()
        operations = compile_layer(ansatz, n_qubits)
        prepared = [_prepare(operation, theta, dtype) for operation in operations]
        layout = make_layout(n_qubits)
        steps = [_step(layout, o, p, theta) for o, p in zip(operations, prepared, strict=True)]
        states = layout.start(len(theta), dtype, theta.device)
        for layer in range(theta.shape[1]):
            for step in steps:
                states = step(states, layer)
        states = layout.flat(states)
        ctx.save_for_backward(theta, states)
        ctx.operations, ctx.prepared, ctx.n_qubits = operations, prepared, n_qubits
        return torch.view_as_real(states).square().sum(-1) if dtype.is_complex else states.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        theta, states = ctx.saved_tensors
        adjoint = Adjoint(ctx.operations, ctx.prepared, theta, ctx.n_qubits)
        if torch.is_autocast_enabled(grad.device.type):
            with torch.autocast(grad.device.type, enabled=False):
                return adjoint.run(states, grad), None, None
        return adjoint.run(states, grad), None, None


def _prepare(operation: Operation, theta: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """An operation's matrices for all layers at once; a permutation has none."""
    if isinstance(operation, Permutation):
        return []
    by_layer = theta.transpose(0, 1)
    if isinstance(operation, Rotations):
        return kronecker.rotation_matrices(_angles(operation, by_layer), operation.axes, dtype)
    matrix = gate_matrix(operation.name, by_layer[..., operation.angle or 0])
    return [matrix if dtype.is_complex else matrix.real.contiguous()]


def _angles(operation: Rotations, theta: Tensor) -> Tensor:
    """The moment's angles of each qubit; 0 where a qubit is not turned."""
    if operation.places is not None:
        return theta[..., operation.places]
    turned = torch.tensor([place is not None for place in operation.angles], device=theta.device)
    return theta[..., [place or 0 for place in operation.angles]] * turned


def _step(layout: Layout, operation: Operation, prepared: list[Tensor], theta: Tensor) -> Step:
    """The operation as it acts in the circuit."""
    if isinstance(operation, Permutation):
        index = permutation_index(layout, operation, len(theta), theta.device, inverse=False)
        return lambda states, layer: layout.permute(states, index)  # noqa: ARG005
    if isinstance(operation, Rotations):
        factors = layout.forth(prepared)
        return lambda states, layer: layout.rotate(states, factors[layer])
    matrices, qubits = prepared[0], operation.qubits
    return lambda states, layer: layout.shaped(
        apply_single(layout.flat(states), matrices[layer], qubits)
    )
