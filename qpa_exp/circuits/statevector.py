"""Exact simulation of the circuit, fast enough to sit in a training step.

Three things make it so. The rotations of one moment act on different qubits, so together they are
one Kronecker product of 2 x 2 matrices: taken in groups of a few qubits, two or three small matrix
products replace N passes over the state. The CNOT chain only permutes basis states: one gather.
And R_Y has real entries, so the state stays real.

The basis state |b_1 b_2 ... b_N> has the index with b_1 as its most significant bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qpa_exp.circuits.ansatz import ANSATZE, ROTATIONS
from qpa_exp.config import Ansatz

MAX_QUBITS = 20
"""A state of 2^20 amplitudes; more chunks than that are no use to the generator."""

_GROUP = 5
"""Qubits to a Kronecker product: 32 x 32 matrices keep the products efficient and small."""


def probabilities(
    theta: Float[Tensor, "layers rotations qubits"], ansatz: Ansatz = Ansatz.ry
) -> Float[Tensor, " states"]:
    """|<i|psi(theta)>|^2 for every basis state i (Eq. 1), differentiable in theta.

    Args:
        theta: angles in radians, one for each repetition, rotation moment and qubit.
        ansatz: the circuit's layer.

    Returns:
        2^N probabilities, in the order of the basis states' indices; they sum to 1.
    """
    n_layers, _, n_qubits = theta.shape
    sizes = group_sizes(n_qubits)
    order, inverse = _chain_permutation(n_qubits, theta.device)
    products = _kronecker_groups(_ry_matrices(theta), sizes)

    state = theta.new_zeros(2**n_qubits)
    state[0] = 1.0
    for layer in range(n_layers):
        rotation = 0
        for moment in ANSATZE[ansatz]:
            if moment in ROTATIONS:
                state = _rotate(state, [group[layer, rotation] for group in products])
                rotation += 1
            else:
                state = _permute(state, order, inverse)
    return state.square()


def group_sizes(n_qubits: int) -> list[int]:
    """Split the qubits into as few groups of at most ``_GROUP`` as there can be, evenly."""
    count = math.ceil(n_qubits / _GROUP)
    small, larger = divmod(n_qubits, count)
    return [small + 1] * larger + [small] * (count - larger)


def _ry_matrices(
    theta: Float[Tensor, "layers rotations qubits"],
) -> Float[Tensor, "layers rotations qubits 2 2"]:
    cos, sin = torch.cos(theta / 2), torch.sin(theta / 2)
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def _kronecker_groups(
    matrices: Float[Tensor, "layers rotations qubits 2 2"], sizes: list[int]
) -> list[Float[Tensor, "layers rotations _ _"]]:
    """For each group of qubits the Kronecker product of its rotations, for all layers at once."""
    groups = []
    for group in matrices.split(sizes, dim=2):
        product = group[:, :, 0]
        for qubit in range(1, group.shape[2]):
            product = _kron(product, group[:, :, qubit])
        groups.append(product)
    return groups


def _kron(
    left: Float[Tensor, "layers rotations a a"], right: Float[Tensor, "layers rotations b b"]
) -> Float[Tensor, "layers rotations _ _"]:
    product = torch.einsum("lrij,lrkm->lrikjm", left, right)
    return product.flatten(4, 5).flatten(2, 3)


def _rotate(
    state: Float[Tensor, " states"], groups: list[Float[Tensor, "_ _"]]
) -> Float[Tensor, " states"]:
    """Apply a Kronecker product of groups: each to its own axis of the state as a tensor."""
    left = 1
    for matrix in groups:
        size = matrix.shape[0]
        if left * size == state.numel():  # the last axis: one product, no batch
            state = state.view(left, size) @ matrix.T
        else:
            state = matrix @ state.view(left, size, -1)
        state = state.reshape(-1)
        left *= size
    return state


def _chain_permutation(
    n_qubits: int, device: torch.device
) -> tuple[Int[Tensor, " states"], Int[Tensor, " states"]]:
    """The CNOT chain as a gather, and its inverse.

    The chain maps bit j to the parity of bits 1 to j. So amplitude y of the new state is amplitude
    y ^ (y >> 1) of the old one: the Gray code.
    """
    new = torch.arange(2**n_qubits, device=device)
    order = new ^ (new >> 1)
    inverse = torch.empty_like(order)
    inverse[order] = new
    return order, inverse


class _Permute(torch.autograd.Function):
    """A gather by a permutation, whose backward is a gather too, not a scatter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # noqa: ARG004
        return state[order]

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Tensor,  # noqa: ARG004
    ) -> None:
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, order), None, None


def _permute(
    state: Float[Tensor, " states"], order: Int[Tensor, " states"], inverse: Int[Tensor, " states"]
) -> Float[Tensor, " states"]:
    permuted: Tensor = _Permute.apply(state, order, inverse)
    return permuted
