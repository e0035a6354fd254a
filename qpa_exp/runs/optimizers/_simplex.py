"""SciPy's searches, which start from a simplex around a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qpa_exp.config import OptimConfig
from qpa_exp.runs.optimizers import Search

if TYPE_CHECKING:
    from torch import Tensor


def scipy_search(method: str, options: Callable[[Any, OptimConfig, int], dict[str, Any]]) -> Search:
    """Return a search by ``scipy.optimize.minimize``.

    Args:
        method: SciPy's name for it.
        options: SciPy's, from the start, the config, and how often the loss may be evaluated.

    Returns:
        A search that gives the best point that was seen.
    """

    def search(
        loss_at: Callable[[Tensor], float], start: Tensor, config: OptimConfig, _: float
    ) -> Tensor:
        import numpy as np
        import torch
        from scipy.optimize import minimize

        best = (float("inf"), start)

        def evaluate(x: Any) -> float:
            nonlocal best
            at = torch.from_numpy(np.array(x)).to(start)
            value = loss_at(at)
            best = min(best, (value, at), key=lambda pair: pair[0])
            return value

        x0 = start.cpu().numpy()
        most = config.max_evaluations or 2 * (len(x0) + 1)
        minimize(evaluate, x0, method=method, options=options(x0, config, most))
        return best[1]

    return search
