"""Rotations of many qubits at once: Kronecker products of 2 x 2 matrices, and their slopes.

The rotations of one moment act on different qubits, so together they are one Kronecker product.
Taken in groups of a few qubits, two or three small matrix products replace N passes over the
state (:mod:`qpa_exp.circuits.layouts`). All layers' matrices are made together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits.gates import pauli_matrix

TWO_GROUPS = 11
"""Up to so many qubits, two groups: few calls count. Above, groups of about ``_GROUP`` qubits."""
_GROUP = 5


def group_sizes(n_qubits: int) -> list[int]:
    """How many qubits go into each Kronecker product; always at least two groups."""
    count = 2 if n_qubits <= TWO_GROUPS else math.ceil(n_qubits / _GROUP)
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
    *others, product = singles.unbind(-3)
    for other in reversed(others):  # the larger factor inside: its rows are multiplied as a whole
        spread = other[..., :, None, :, None] * product[..., None, :, None, :]
        size = 2 * product.shape[-1]
        product = spread.view(*spread.shape[:-4], size, size)
    return product


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


def split_axes(axes: tuple[str, ...], sizes: Sequence[int]) -> list[tuple[str, ...]]:
    """The axes of each group of qubits."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [axes[start : start + size] for start, size in zip(starts, sizes, strict=True)]
