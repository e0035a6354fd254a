"""``optim=cobyla``: SciPy's COBYLA, from a simplex of edge ``optim.radius``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qpa_exp.config import OptimConfig
from qpa_exp.runs.optimizers import AnglesOptimizer
from qpa_exp.runs.optimizers._simplex import search_with_scipy

if TYPE_CHECKING:
    from torch import Tensor


def search(
    loss_at: Callable[[Tensor], float],
    start: Tensor,
    config: OptimConfig,
    lr: float,  # noqa: ARG001 - it has none
) -> Tensor:
    """Linear approximations in a trust region (Powell 1994)."""
    evaluations = config.max_evaluations or 2 * (len(start) + 1)
    return search_with_scipy(
        loss_at, start, "COBYLA", {"maxiter": evaluations, "rhobeg": config.radius}
    )


ENTRY = AnglesOptimizer(search, keeps_a_simplex=True)
