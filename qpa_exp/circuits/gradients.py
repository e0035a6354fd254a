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
    theta: Float[Tensor, "layers rotations qubits"], measure: Measure, estimate: Estimate
) -> Float[Tensor, " states"]:
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
    several of at most ``most`` circuits.
    """

    def estimate(
        measure: Measure,
        theta: Float[Tensor, "layers rotations qubits"],
        grad: Float[Tensor, " states"],
    ) -> Float[Tensor, "layers rotations qubits"]:
        slopes = [
            (measure(shifted).unflatten(0, (-1, 2)).diff(dim=1).squeeze(1) @ grad) / 2
            for shifted in _shifted(theta, max(1, most // 2))
        ]
        return torch.cat(slopes).view_as(theta)

    return estimate


def _shifted(theta: Tensor, angles: int) -> Iterator[Tensor]:
    """For so many angles at a time, the circuit with it shifted down, and shifted up."""
    for places in torch.arange(theta.numel(), device=theta.device).split(angles):
        steps = torch.zeros(len(places), theta.numel(), dtype=theta.dtype, device=theta.device)
        steps[torch.arange(len(places)), places] = math.pi / 2
        both = torch.stack([theta.flatten() - steps, theta.flatten() + steps], dim=1)
        yield both.flatten(0, 1).unflatten(-1, theta.shape)


def spsa(step: float) -> Estimate:
    """Simultaneous perturbation (Spall 1992): two circuits, however many angles there are.

    All angles move by +-``step`` at once, each with a sign drawn from torch's global stream. An
    unbiased estimate of the slope up to ``step`` squared, with a variance that grows with the
    number of angles.
    """

    def estimate(
        measure: Measure,
        theta: Float[Tensor, "layers rotations qubits"],
        grad: Float[Tensor, " states"],
    ) -> Float[Tensor, "layers rotations qubits"]:
        signs = (2 * torch.randint(2, theta.shape) - 1).to(theta)
        down, up = measure(torch.stack([theta - step * signs, theta + step * signs]))
        return signs * ((up - down) @ grad) / (2 * step)

    return estimate
