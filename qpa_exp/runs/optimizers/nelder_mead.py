"""``optim=nelder_mead``: SciPy's downhill simplex (1965), of edge ``optim.radius`` at first."""

from __future__ import annotations

from typing import Any

from qpa_exp.config import OptimConfig
from qpa_exp.runs.optimizers import AnglesOptimizer
from qpa_exp.runs.optimizers._simplex import scipy_search


def _options(x0: Any, config: OptimConfig, most: int) -> dict[str, Any]:
    import numpy as np

    corners = np.vstack([x0, x0 + config.radius * np.eye(len(x0))])
    return {"maxfev": most, "initial_simplex": corners}


ENTRY = AnglesOptimizer(scipy_search("Nelder-Mead", _options), keeps_a_simplex=True)
