"""Two evaluations, however many angles there are: simultaneous perturbation (Spall 1992)."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.gradients import Estimate, GradientMethod, Measure
from qpa_exp.config import QPAConfig


def spsa(config: QPAConfig, most: int) -> Estimate:
    """All angles move by +-``qpa.spsa_step`` at once, each with a sign from torch's global stream.

    An unbiased estimate of the slope up to the step squared, with a variance that grows with the
    number of angles.
    """
    return partial(_estimate, config.spsa_step)


def _estimate(
    step: float,
    measure: Measure,
    theta: Float[Tensor, "*circuits layers rotations qubits"],
    grad: Float[Tensor, "*circuits states"],
) -> Float[Tensor, "*circuits layers rotations qubits"]:
    signs = (2 * torch.randint(2, theta.shape, device="cpu") - 1).to(theta)
    down, up = measure(torch.stack([theta - step * signs, theta + step * signs]))
    slopes = torch.linalg.vecdot(up - down, grad) / (2 * step)
    return signs * slopes[..., None, None, None]


ENTRY = GradientMethod("SPSA", spsa, reads=("qpa.spsa_step",), circuits=lambda n_angles: 2)
