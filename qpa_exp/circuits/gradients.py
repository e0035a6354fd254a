"""Slopes from evaluations alone, as a quantum device has to give them.

``measure`` is any function from a batch of angles to a batch of probabilities or frequencies. The
backward of :func:`estimated` calls it again: at shifted angles, many circuits in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Measure = Callable[[Tensor], Tensor]
Estimate = Callable[[Measure, Tensor, Tensor], Tensor]


def estimated(
    theta: Float[Tensor, "*circuits layers rotations qubits"], measure: Measure, estimate: Estimate
) -> Float[Tensor, "*circuits states"]:
    """``measure(theta)``, whose backward is ``estimate(measure, theta, gradient)``."""
    measured: Tensor = _Estimated.apply(theta, measure, estimate)
    return measured


class _Estimated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, measure: Measure, estimate: Estimate) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.measure, ctx.estimate = measure, estimate
        return measure(theta.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        return ctx.estimate(ctx.measure, theta, grad), None, None


def parameter_shift(most: int) -> Estimate:
    """The vector-Jacobian product by the parameter-shift rule (Mitarai et al. 2018).

    For a gate ``exp(-i angle/2 P)`` the slope of any probability is exactly
    ``(p(angle + pi/2) - p(angle - pi/2)) / 2``. Two circuits for each angle, in one batch, or in
    several of at most ``most`` circuits. Circuits side by side are shifted together.
    """

    def estimate(
        measure: Measure,
        theta: Float[Tensor, "*circuits layers rotations qubits"],
        grad: Float[Tensor, "*circuits states"],
    ) -> Float[Tensor, "*circuits layers rotations qubits"]:
        slopes = [
            torch.linalg.vecdot(measure(shifted).diff(dim=1).squeeze(1), grad) / 2
            for shifted in _shifted(theta, max(1, most // 2))
        ]
        return torch.cat(slopes).movedim(0, -1).reshape(theta.shape)

    return estimate


def _shifted(
    theta: Float[Tensor, "*circuits layers rotations qubits"], angles: int
) -> Iterator[Float[Tensor, "angles 2 *circuits layers rotations qubits"]]:
    """For so many angles at a time, every circuit with it shifted down, and shifted up."""
    flat = theta.flatten(-3)
    for places in torch.arange(flat.shape[-1], device=theta.device).split(angles):
        steps = flat.new_zeros(len(places), flat.shape[-1])
        steps[torch.arange(len(places)), places] = math.pi / 2
        steps = steps.view(len(places), *[1] * (flat.ndim - 1), -1)
        both = torch.stack([flat - steps, flat + steps], dim=1)
        yield both.unflatten(-1, theta.shape[-3:])


def spsa(step: float) -> Estimate:
    """Simultaneous perturbation (Spall 1992): two circuits, however many angles there are.

    All angles move by +-``step`` at once, each with a sign drawn from torch's global stream. An
    unbiased estimate of the slope up to ``step`` squared, with a variance that grows with the
    number of angles.
    """

    def estimate(
        measure: Measure,
        theta: Float[Tensor, "*circuits layers rotations qubits"],
        grad: Float[Tensor, "*circuits states"],
    ) -> Float[Tensor, "*circuits layers rotations qubits"]:
        signs = (2 * torch.randint(2, theta.shape) - 1).to(theta)
        down, up = measure(torch.stack([theta - step * signs, theta + step * signs]))
        slopes = torch.linalg.vecdot(up - down, grad) / (2 * step)
        return signs * slopes[..., None, None, None]

    return estimate
