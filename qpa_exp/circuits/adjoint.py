"""The state vector's backward: the adjoint method (Jones and Gacon 2020, arXiv:2009.02823).

It takes the gates back one after the other instead of keeping every state, so its memory does not
grow with the circuit's depth. psi and its cotangent lambda = dL/dpsi go back side by side, as one
batch; lambda is kept conjugated, so that no product needs to conjugate anything. The slope of an
angle is Re <lambda| -i P / 2 |psi>, both taken right after its gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits import kronecker
from qpa_exp.circuits.layouts import ManyGroups, TwoGroups, make_layout, permutation_index
from qpa_exp.circuits.program import Operation, Permutation, Rotations, SingleGate
from qpa_exp.circuits.single_gate import apply_single, slope_of_single

_KEPT_BYTES = 2**24
"""States of few qubits that are kept, so as to find the slopes of many layers in one product."""

StepBack = Callable[[Tensor, int], Tensor]


class Adjoint:
    """One way back through a circuit."""

    def __init__(
        self,
        operations: Sequence[Operation],
        prepared: Sequence[list[Tensor]],
        theta: Float[Tensor, "batch layers angles"],
        n_qubits: int,
    ) -> None:
        self.operations, self.theta, self.batch = operations, theta, len(theta)
        self.layout = make_layout(n_qubits)
        self.sizes = kronecker.group_sizes(n_qubits)
        self.slopes = torch.zeros_like(theta)
        self.pairs: dict[Rotations, list[Tensor]] = {}
        self.pair_bytes = 0
        self.overlaps: dict[Rotations, list[list[Tensor]]] = {}
        self.steps = [self._step(o, p) for o, p in zip(operations, prepared, strict=True)][::-1]

    def run(
        self, states: Shaped[Tensor, "batch states"], grad: Float[Tensor, "batch states"]
    ) -> Float[Tensor, "batch layers angles"]:
        """dL/dtheta from the circuit's last states and dL/dp of their probabilities."""
        pair = self.layout.shaped(torch.cat([states, (2 * grad * states).conj()]))
        for layer in reversed(range(self.theta.shape[1])):
            for step in self.steps:
                pair = step(pair, layer)
        self._reduce_pairs()
        for operation, overlaps in self.overlaps.items():
            self._add(operation, overlaps)
        return self.slopes

    def _step(self, operation: Operation, prepared: list[Tensor]) -> StepBack:
        if isinstance(operation, Permutation):
            device, layout = self.theta.device, self.layout
            index = permutation_index(layout, operation, 2 * self.batch, device, inverse=True)
            return lambda pair, layer: layout.permute(pair, index)  # noqa: ARG005
        if isinstance(operation, SingleGate):
            return self._step_of_single(operation, prepared[0])
        if isinstance(self.layout, TwoGroups):
            return self._step_of_few(self.layout, operation, prepared)
        return self._step_of_many(self.layout, operation, prepared)

    # --- rotations ----------------------------------------------------------------------------

    def _step_of_few(
        self, layout: TwoGroups, operation: Rotations, prepared: list[Tensor]
    ) -> StepBack:
        """Keep the pair, to be reduced together with those of other layers."""
        factors = layout.back(prepared)
        kept = self.pairs[operation] = []

        def step(pair: Tensor, layer: int) -> Tensor:
            kept.append(pair)
            self.pair_bytes += pair.nbytes
            if self.pair_bytes > _KEPT_BYTES:
                self._reduce_pairs()
            return layout.rotate(pair, factors[layer])

        return step

    def _step_of_many(
        self, layout: ManyGroups, operation: Rotations, prepared: list[Tensor]
    ) -> StepBack:
        factors = layout.back(prepared)
        overlaps = self.overlaps[operation] = []

        def step(pair: Tensor, layer: int) -> Tensor:
            pair, found = layout.rotate_back(pair, factors[layer], self.batch)
            overlaps.append(found)
            return pair

        return step

    def _reduce_pairs(self) -> None:
        for operation, pairs in self.pairs.items():
            if pairs:
                assert isinstance(self.layout, TwoGroups)
                found = self.layout.overlaps(pairs, self.batch)
                self.overlaps.setdefault(operation, []).append(found)
                pairs.clear()
        self.pair_bytes = 0

    def _add(self, operation: Rotations, overlaps: list[list[Tensor]]) -> None:
        """The slopes of one operation in all layers, from the last layer to the first."""
        groups = [torch.cat(group) for group in zip(*overlaps, strict=True)]
        axes = kronecker.split_axes(operation.axes, self.sizes)
        each = [kronecker.slopes(group, a) for group, a in zip(groups, axes, strict=True) if a]
        slopes = torch.cat(each, dim=-1).unflatten(0, (-1, self.batch)).flip(0).transpose(0, 1)
        if operation.places is not None:
            self.slopes[..., operation.places] = slopes
            return
        for qubit, place in enumerate(operation.angles):
            if place is not None:
                self.slopes[..., place] = slopes[..., qubit]

    # --- any other gate -----------------------------------------------------------------------

    def _step_of_single(self, operation: SingleGate, matrices: Tensor) -> StepBack:
        inverse = torch.cat([matrices.conj(), matrices], dim=1).mT.contiguous()
        layout, qubits, place = self.layout, operation.qubits, operation.angle

        def step(pair: Tensor, layer: int) -> Tensor:
            after = layout.flat(pair)
            before = apply_single(after, inverse[layer], qubits)
            if place is not None:
                self.slopes[:, layer, place] += slope_of_single(
                    operation.name, qubits, self.theta[:, layer, place],
                    before[: self.batch], after[self.batch :],
                )  # fmt: skip
            return layout.shaped(before)

        return step
