"""``optim=cobyla``: SciPy's COBYLA (Powell 1994), from a simplex of edge ``optim.radius``."""

from __future__ import annotations

from qpa_exp.runs.optimizers import AnglesOptimizer
from qpa_exp.runs.optimizers._simplex import scipy_search

ENTRY = AnglesOptimizer(
    scipy_search("COBYLA", lambda x0, config, most: {"maxiter": most, "rhobeg": config.radius}),
    keeps_a_simplex=True,
)
