"""``optim=nelder_mead``: SciPy's Nelder-Mead, from a simplex of edge ``optim.radius``."""

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
    """The downhill simplex (Nelder and Mead 1965)."""
    import numpy as np

    x0 = start.cpu().numpy()
    corners = np.vstack([x0, x0 + config.radius * np.eye(len(x0))])
    evaluations = config.max_evaluations or 2 * (len(x0) + 1)
    options = {"maxfev": evaluations, "initial_simplex": corners}
    return search_with_scipy(loss_at, start, "Nelder-Mead", options)


ENTRY = AnglesOptimizer(search, keeps_a_simplex=True)
