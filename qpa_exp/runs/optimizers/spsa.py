"""``optim=spsa``: simultaneous perturbation (Spall 1992)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qpa_exp.config import OptimConfig
from qpa_exp.runs.optimizers import AnglesOptimizer

if TYPE_CHECKING:
    from torch import Tensor


def search(
    loss_at: Callable[[Tensor], float], start: Tensor, config: OptimConfig, lr: float
) -> Tensor:
    """Follow the slope along random directions of +-1 by one step of ``lr``.

    Each pair of evaluations, ``optim.radius`` to either side, gives one direction; their mean is
    followed.
    """
    import torch

    pairs = max(1, (config.max_evaluations or 2) // 2)
    gradient = torch.zeros_like(start)
    for _ in range(pairs):
        direction = 2.0 * torch.randint_like(start, 2) - 1.0
        rise = loss_at(start + config.radius * direction) - loss_at(
            start - config.radius * direction
        )
        gradient += rise / (2 * config.radius * pairs) * direction
    return start - lr * gradient


ENTRY = AnglesOptimizer(search)
