"""SciPy's searches, which start from a simplex around a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def search_with_scipy(
    loss_at: Callable[[Tensor], float], start: Tensor, method: str, options: dict[str, Any]
) -> Tensor:
    """The best point that ``scipy.optimize.minimize`` saw."""
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

    minimize(evaluate, start.cpu().numpy(), method=method, options=options)
    return best[1]
