"""How a batch of states lies in memory, and how rotations and permutations act on it there.

With few qubits what counts is the number of calls: :class:`TwoGroups`. With many it is the passes
over memory, and that no new memory is asked for: :class:`ManyGroups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Shaped
from torch import Tensor

from qpa_exp.circuits.kronecker import TWO_GROUPS, group_sizes, no_grad_tensor
from qpa_exp.circuits.program import Permutation

Groups = Sequence[Shaped[Tensor, "layers batch _ _"]]
"""Of one moment, for each group of qubits the Kronecker product of its rotations."""
Factors = list[tuple[Tensor, ...]]
"""The same, layer by layer and as a layout's ``rotate`` takes them."""


def _twice(groups: Groups) -> list[Tensor]:
    """For states and, after them in the batch, conjugated cotangents."""
    if groups[0].shape[1] == 1 and not groups[0].is_complex():
        return [group.expand(-1, 2, -1, -1) for group in groups]
    return [torch.cat([group.conj(), group], dim=1) for group in groups]


def _by_layer(stacks: Sequence[Tensor]) -> Factors:
    return list(zip(*(stack.unbind() for stack in stacks), strict=True))


class TwoGroups:
    """States as matrices, (batch, 2^a, 2^b): one group of qubits acts from each side."""

    def __init__(self, n_qubits: int) -> None:
        self.shape = tuple(2**size for size in group_sizes(n_qubits))

    def start(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """|0...0>, not to be written to."""
        return _zero_state(batch, self.shape, dtype, device)

    def forth(self, groups: Groups) -> Factors:
        """What :meth:`rotate` takes in the circuit."""
        left, right = groups
        return _by_layer([left, right.mT])

    def back(self, groups: Groups) -> Factors:
        """What :meth:`rotate` takes on the way back."""
        left, right = _twice(groups)
        return _by_layer([left.mT, right])

    def rotate(self, states: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """Apply one layer's rotations."""
        left, right = factors
        return torch.bmm(torch.bmm(left, states), right)

    def index(self, order: Tensor, batch: int) -> Tensor:
        """What :meth:`permute` takes: places in the whole batch, in the states' shape."""
        starts = torch.arange(batch, device=order.device)[:, None] * len(order)
        return (starts + order).view(batch, *self.shape)

    def permute(self, states: Tensor, index: Tensor) -> Tensor:
        """Move the basis states."""
        return torch.take(states, index)

    def flat(self, states: Tensor) -> Shaped[Tensor, "_ states"]:
        """(batch, 2^N), a view."""
        return states.view(len(states), -1)

    def shaped(self, states: Shaped[Tensor, "_ states"]) -> Tensor:
        """The inverse of :meth:`flat`."""
        return states.view(-1, *self.shape)

    def overlaps(self, pairs: list[Tensor], batch: int) -> list[Shaped[Tensor, "_ _ _"]]:
        """For each group, the sum over the rest of lambda_i psi_j, of many pairs at once."""
        stacked = torch.stack(pairs)
        psi = stacked[:, :batch].reshape(-1, *self.shape)
        cotangent = stacked[:, batch:].reshape(-1, *self.shape)
        return [torch.bmm(cotangent, psi.mT), torch.bmm(cotangent.mT, psi)]


class ManyGroups:
    """States as vectors, (batch, 2^N), in two buffers that take turns.

    Each group acts on the first axis of the state and moves it last: one product, and no copy.
    After all groups the axes are in order again.
    """

    def __init__(self, n_qubits: int) -> None:
        self.n_states = 2**n_qubits
        self.spare: Tensor | None = None

    def start(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """|0...0>."""
        states = torch.zeros(batch, self.n_states, dtype=dtype, device=device)
        states[:, 0] = 1
        return states

    def forth(self, groups: Groups) -> Factors:
        """What :meth:`rotate` takes in the circuit."""
        return _by_layer([group.mT for group in groups])

    def back(self, groups: Groups) -> Factors:
        """What :meth:`rotate` takes on the way back."""
        return _by_layer(_twice(groups))

    def rotate(self, states: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """Apply one layer's rotations; writes over ``states``."""
        for factor in factors:
            states = self._rotate_first(states, factor)
        return states

    def rotate_back(
        self, pair: Tensor, factors: tuple[Tensor, ...], batch: int
    ) -> tuple[Tensor, list[Shaped[Tensor, "_ _ _"]]]:
        """:meth:`rotate`, and each group's overlap, taken while its axis is the first."""
        overlaps = []
        for factor in factors:
            psi, cotangent = pair.view(2, batch, factor.shape[-1], -1).unbind()
            overlaps.append(torch.bmm(cotangent, psi.mT))
            pair = self._rotate_first(pair, factor)
        return pair, overlaps

    def _rotate_first(self, states: Tensor, factor: Tensor) -> Tensor:
        spare = self._spare(states)
        tensor = states.view(len(states), factor.shape[-1], -1).mT
        torch.bmm(tensor, factor, out=spare.view(tensor.shape))
        return spare

    def _spare(self, states: Tensor) -> Tensor:
        """The other buffer; ``states`` takes its place."""
        spare = torch.empty_like(states) if self.spare is None else self.spare
        self.spare = states
        return spare

    def index(self, order: Tensor, batch: int) -> Tensor:  # noqa: ARG002
        """What :meth:`permute` takes."""
        return order

    def permute(self, states: Tensor, index: Tensor) -> Tensor:
        """Move the basis states; writes over ``states``."""
        return torch.index_select(states, 1, index, out=self._spare(states))

    def flat(self, states: Tensor) -> Shaped[Tensor, "_ states"]:
        """(batch, 2^N), as it is."""
        return states

    def shaped(self, states: Shaped[Tensor, "_ states"]) -> Tensor:
        """The inverse of :meth:`flat`."""
        return states


Layout = TwoGroups | ManyGroups


def make_layout(n_qubits: int) -> Layout:
    """The layout for that many qubits, for one way through the circuit."""
    return TwoGroups(n_qubits) if n_qubits <= TWO_GROUPS else ManyGroups(n_qubits)


def permutation_index(
    layout: Layout, permutation: Permutation, batch: int, device: torch.device, *, inverse: bool
) -> Tensor:
    """What the layout's ``permute`` takes; kept for the next step."""
    if isinstance(layout, TwoGroups):
        return _index(permutation, batch, device, inverse)
    return permutation.inverse(device) if inverse else permutation.order(device)


@lru_cache(maxsize=32)
def _index(permutation: Permutation, batch: int, device: torch.device, inverse: bool) -> Tensor:
    order = permutation.inverse(device) if inverse else permutation.order(device)
    return no_grad_tensor(TwoGroups(permutation.n_qubits).index(order, batch))


@lru_cache(maxsize=32)
def _zero_state(
    batch: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    states = torch.zeros(batch, *shape, dtype=dtype, device=device)
    states[:, 0, 0] = 1
    return no_grad_tensor(states)
