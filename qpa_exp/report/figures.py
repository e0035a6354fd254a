"""The figures that a study's file may ask for, by kind, all drawn from the table of runs.

Those of what a setting takes are here: qubits, time, how its circuit's gradient fades.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from qpa_exp.errors import InputError
from qpa_exp.registry import Registry
from qpa_exp.report import drawing, metric_figures
from qpa_exp.report.comparisons import aggregate, family


def qubits(runs: pd.DataFrame) -> Figure:
    """Qubits against trainable parameters (Eq. 8), for each method and model."""
    table = aggregate(runs[runs["qpa.variant"] != "off"])
    figure = Figure(figsize=(1.3 * drawing.WIDTH, 1.1 * drawing.HEIGHT), layout="constrained")
    axis = figure.subplots()
    groups = table.groupby(["model.name", "peft.method"], sort=False)
    for ((model, _), points), style in zip(groups, drawing.styles(), strict=False):
        points = points.sort_values("trainable_params")
        if axis.lines:  # the same points, often: hollow, so that both are seen
            style |= {"markerfacecolor": "none", "markersize": 10, "linestyle": "--"}
        label = f"{family(points.iloc[0])}, {model}"
        axis.plot(points["trainable_params"], points["n_qubits"], label=label, **style)
    drawing.parameters_axis(axis)
    axis.set_ylabel("qubits N")
    drawing.whole_numbers(axis.yaxis)
    axis.legend()
    return figure


def time(runs: pd.DataFrame) -> Figure:
    """Seconds of training, and of one step, against trainable parameters."""
    table = aggregate(runs)
    several_lengths = table["trainer.max_epochs"].nunique() > 1
    figure = Figure(figsize=(2 * drawing.WIDTH, drawing.HEIGHT), layout="constrained")
    names = {
        "train_seconds": "seconds of training",
        "step_seconds_median": "seconds a step, median",
    }
    for axis, (column, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        keys = table.apply(lambda row: _timed(row, several_lengths), axis=1)
        for name, style in zip(dict.fromkeys(keys), drawing.many_styles(), strict=False):
            drawing.curve(
                axis, table[keys == name], "trainable_params", column, label=name, **style
            )
        drawing.parameters_axis(axis)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
    drawing.legend(axis, beside=True)
    return figure


def _timed(row: pd.Series, with_length: bool) -> str:
    name = f"{family(row)}, {row['model.name']}"
    return f"{name}, max_epochs = {row['trainer.max_epochs']:g}" if with_length else name


def gradient_variance(runs: pd.DataFrame) -> Figure:
    """Variance of the circuit's gradient against N and L: QPA's loss, and an expectation value."""
    if "gradient_variance" not in runs:
        raise InputError(
            "No run of this study has measured its gradient's variance: "
            "that takes trainer.gradient_variance_starts=<starts>."
        )
    table = aggregate(runs)
    figure = Figure(figsize=(2.3 * drawing.WIDTH, 2 * drawing.HEIGHT), layout="constrained")
    rows = {"gradient_variance": "QPA's loss", "expectation_variance": "the probability of |0...0>"}
    columns = (
        ("n_qubits", "qpa.n_layers", "qubits N", "L"),
        ("qpa.n_layers", "n_qubits", "L", "N"),
    )
    for axes, (measured, name) in zip(figure.subplots(2, 2), rows.items(), strict=True):
        for axis, (x, hue, label, symbol) in zip(axes, columns, strict=True):
            groups = table.sort_values(x).groupby(hue)
            for (value, points), style in zip(groups, drawing.many_styles(), strict=False):
                axis.plot(points[x], points[measured], label=f"{symbol} = {value:g}", **style)
            axis.set_yscale("log")
            if x == "qpa.n_layers":
                drawing.powers_axis(axis, table[x])
            else:
                drawing.whole_numbers(axis.xaxis)
            axis.set_xlabel(label)
            axis.set_ylabel(f"gradient variance of\n{name}")
            drawing.legend(axis, beside=True)
    return figure


KINDS: Registry[Callable[..., Figure]] = Registry(
    "figures.kind",
    {
        "parameters": metric_figures.parameters,
        "pareto": metric_figures.pareto_front,
        "over": metric_figures.over,
        "learning_rates": metric_figures.learning_rates,
        "categories": metric_figures.categories,
        "qubits": qubits,
        "time": time,
        "gradient_variance": gradient_variance,
    },
)


def draw(runs: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """The figure that a study's file asks for: ``kind``, and its function's other arguments.

    Raises:
        InputError: no such kind, or an argument that it does not take.
    """
    options = dict(spec)
    kind = str(options.pop("kind", None))
    with mpl.rc_context(drawing.STYLE):
        try:
            return KINDS[kind](runs, **options)
        except TypeError as error:
            raise InputError(f"figure {kind} does not take {options}: {error}.") from error
