"""The figures that a study's file may ask for, by kind, all drawn from the table of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from qpa_exp.errors import InputError
from qpa_exp.registry import Registry
from qpa_exp.report import cost_figures, metric_figures
from qpa_exp.report.drawing import STYLE

KINDS: Registry[Callable[..., Figure]] = Registry(
    "figures.kind",
    {
        "parameters": metric_figures.parameters,
        "pareto": metric_figures.pareto_front,
        "over": metric_figures.over,
        "learning_rates": metric_figures.learning_rates,
        "categories": metric_figures.categories,
        "qubits": cost_figures.qubits,
        "time": cost_figures.time,
        "gradient_variance": cost_figures.gradient_variance,
    },
)


def draw(runs: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """The figure that a study's file asks for: ``kind``, and its function's other arguments.

    Raises:
        InputError: no such kind, or an argument that it does not take.
    """
    options = dict(spec)
    kind = str(options.pop("kind", None))
    with mpl.rc_context(STYLE):
        try:
            return KINDS[kind](runs, **options)
        except TypeError as error:
            raise InputError(f"figure {kind} does not take {options}: {error}.") from error
