"""Rotations of many qubits at once: a Kronecker product of 2 x 2 matrices, applied in groups.

The rotations of one moment act on different qubits, so together they are one Kronecker product.
Taken in groups of a few qubits, two or three small matrix products replace N passes over the
state. All layers' matrices are made together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits.gates import pauli_matrix

_TWO_GROUPS = 11
"""Up to so many qubits, two groups: few calls count. Above, groups of about ``_GROUP`` qubits."""
_GROUP = 5

# A batch of states, (batch, 2^N); of square matrices, (batch, d, d): "batch" is not the same axis
# everywhere, so the types below name only what holds.
States = Shaped[Tensor, "_ states"]
Matrices = Shaped[Tensor, "_ _ _"]
Factors = list[tuple[Tensor, ...]]
"""For each layer, one (batch, d, d) matrix a group."""


def group_sizes(n_qubits: int) -> list[int]:
    """How many qubits go into each Kronecker product; always at least two groups."""
    count = 2 if n_qubits <= _TWO_GROUPS else math.ceil(n_qubits / _GROUP)
    small, larger = divmod(n_qubits, count)
    return [small] * (count - larger) + [small + 1] * larger


def no_grad_tensor(values: Tensor) -> Tensor:
    """A copy that training may use even where it is made (and cached) in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return values.clone()


@cache
def _blocks(
    axes: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> Shaped[Tensor, "2 qubits 4"]:
    """The rotations as cos(a/2) I + sin(a/2) (-i P): I and -i P for each qubit, row by row."""
    one, paulis = pauli_matrix("I"), [pauli_matrix(axis) for axis in axes]
    blocks = torch.stack([one.expand(len(axes), 2, 2), -1j * torch.stack(paulis)]).flatten(2)
    return no_grad_tensor((blocks if dtype.is_complex else blocks.real).to(device, dtype))


def rotation_matrices(
    angles: Float[Tensor, "*batch qubits"], axes: Sequence[str], dtype: torch.dtype
) -> list[Shaped[Tensor, "*batch _ _"]]:
    """For each group of qubits the Kronecker product of its rotations ``exp(-i angle/2 P)``.

    Args:
        angles: in radians; any batch of circuits and layers.
        axes: P of each qubit: X, Y or Z.
        dtype: of the matrices; a real one takes Y alone.
    """
    one, turned = _blocks(tuple(axes), dtype, angles.device)
    half = (angles / 2).unsqueeze(-1)
    singles = (torch.cos(half) * one + torch.sin(half) * turned).unflatten(-1, (2, 2))
    return [_kronecker(group) for group in singles.split(group_sizes(len(axes)), dim=-3)]


def _kronecker(singles: Shaped[Tensor, "*batch qubits 2 2"]) -> Shaped[Tensor, "*batch _ _"]:
    if singles.shape[-3] == 0:
        return singles.new_ones(*singles.shape[:-3], 1, 1)
    product, *others = singles.unbind(-3)
    for other in others:
        spread = product[..., :, None, :, None] * other[..., None, :, None, :]
        size = 2 * product.shape[-1]
        product = spread.view(*spread.shape[:-4], size, size)
    return product


def by_layer(groups: Sequence[Shaped[Tensor, "layers batch _ _"]]) -> Factors:
    """The groups' matrices as :func:`apply` takes them, layer by layer."""
    return _factors([groups[0], *(group.mT for group in groups[1:])], groups[0].mT)


def inverse_by_layer(groups: Sequence[Shaped[Tensor, "layers batch _ _"]]) -> Factors:
    """The inverses' matrices, for a batch of states and, after it, of conjugated cotangents."""
    twice = [torch.cat([group.conj(), group], dim=1) for group in groups]
    return _factors([twice[0].mT, *twice[1:]], twice[0])


def _factors(matrices: list[Tensor], rotated: Tensor) -> Factors:
    """Two groups act from the left and from the right; of more, each from the right in turn."""
    first = matrices[0] if len(matrices) == 2 else rotated
    return list(zip(*(stack.unbind() for stack in (first, *matrices[1:])), strict=True))


def spare_for(states: States) -> States | None:
    """A second buffer for :func:`apply`, where states are so large that new ones would be slow."""
    return torch.empty_like(states) if states.shape[1] > 2**_TWO_GROUPS else None


def apply(
    states: States, factors: tuple[Matrices, ...], spare: States | None = None
) -> tuple[States, States | None]:
    """Apply a Kronecker product of groups, one layer's factors, to states (batch, 2^N).

    Where ``spare`` is given it is written over, and the old states become the new spare.
    """
    if len(factors) > 2:
        for right in factors:
            states, spare = apply_leading(states, right, spare)
        return states, spare
    left, right = factors
    tensor = states.view(-1, left.shape[-1], right.shape[-1])
    return torch.bmm(torch.bmm(left, tensor), right).view(states.shape), spare


def apply_leading(
    states: States, right: Matrices, spare: States | None
) -> tuple[States, States | None]:
    """Apply one of many groups to the first axis, and move that axis last: no copy."""
    tensor = states.view(len(states), right.shape[-1], -1).transpose(1, 2)
    if spare is None:
        return torch.bmm(tensor, right).view(states.shape), None
    torch.bmm(tensor, right, out=spare.view(tensor.shape))
    return spare, states


def overlaps(left: States, right: States, sizes: Sequence[int]) -> list[Shaped[Tensor, "_ _ _"]]:
    """For each group, the sum over the rest of left_i right_j: two groups only."""
    first, last = (2**size for size in sizes)
    left, right = left.view(-1, first, last), right.view(-1, first, last)
    return [
        torch.bmm(left, right.transpose(1, 2)),
        torch.bmm(left.transpose(1, 2), right),
    ]


def overlap_leading(left: States, right: States, size: int) -> Shaped[Tensor, "_ d d"]:
    """The same for the group on the first axis, of ``size`` values."""
    left, right = (states.view(len(states), size, -1) for states in (left, right))
    return torch.bmm(left, right.transpose(1, 2))


@cache
def _generators(
    axes: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> Shaped[Tensor, "entries qubits"]:
    """-i P / 2 on each qubit of a group, as a matrix on the group, one column each."""
    columns = []
    for qubit, axis in enumerate(axes):
        letters = ["I"] * len(axes)
        letters[qubit] = axis
        columns.append((-0.5j * pauli_matrix("".join(letters))).flatten())
    table = torch.stack(columns, dim=1)
    return no_grad_tensor((table if dtype.is_complex else table.real).to(device, dtype))


def slopes(overlap: Shaped[Tensor, "_ d d"], axes: Sequence[str]) -> Float[Tensor, "_ qubits"]:
    """Re <left| -i P_q / 2 |right> for each qubit of a group, from the group's overlap."""
    table = _generators(tuple(axes), overlap.dtype, overlap.device)
    return (overlap.flatten(1) @ table).real
