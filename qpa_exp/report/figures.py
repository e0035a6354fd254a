"""The figures that a study's file may ask for, by kind, all drawn from the table of runs.

Points are means over seeds, bars the standard deviation.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from qpa_exp.errors import InputError
from qpa_exp.files import fits
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.registry import Registry
from qpa_exp.report import drawing
from qpa_exp.report.comparisons import (
    aggregate,
    best,
    family,
    has_trained_circuit,
    is_generated,
    pareto,
    ranked_by,
    validation_of,
)
from qpa_exp.report.tables import METRIC, reported_perplexities

_MOST_LABELLED = 2
"""With more QPA series than that in one panel, labels would lie over each other."""
_MOST_INSIDE = 6
"""With as many QPA series, their names would lie over the curves: they go beside the panel."""
_LINE = 84
"""Letters in a line of a setting's name."""
_SHOTS, _RATE = "qpa.shots", "optim.lr"

_CONTROL = "no trained circuit"
_HALF: dict[str, Any] = {"markerfacecoloralt": "white"}
_FILLS: dict[str, dict[str, Any]] = {
    "off": {"markerfacecolor": "white"}, "tuned": {}, "random": {**_HALF, "fillstyle": "right"},
    "paper": {**_HALF, "fillstyle": "left"}, "released": {**_HALF, "fillstyle": "top"},
    _CONTROL: {**_HALF, "fillstyle": "bottom"},
}  # fmt: skip


def parameters(runs: pd.DataFrame, hue: str | Sequence[str] | None = None) -> Figure:
    """The metric against trainable parameters: the classical curve, and QPA's points.

    Args:
        runs: rows of runs.
        hue: the key, or keys, whose values are QPA series of their own: ``qpa.shots``.
    """
    panels = list(drawing.panels(aggregate(runs)))
    drawn = [list(_series(panel.table, hue)) for panel in panels]
    beside = max(map(len, drawn), default=0) >= _MOST_INSIDE
    figure, axes = drawing.grid(panels, width=drawing.WIDTH + 2.2 * beside)
    for axis, panel, series in zip(axes, panels, drawn, strict=True):
        _classical_curve(axis, panel)
        for (name, points), style in zip(series, drawing.styles(), strict=False):
            labelled = len(series) <= _MOST_LABELLED
            name += ", by n_mlp" if labelled else ""
            drawing.curve(axis, points, "trainable_params", panel.metric.name, label=name, **style)
            if labelled:  # of a steep curve, which falls to the right: upwards of there is room
                for _, row in points.iterrows():
                    at = (row["trainable_params"], row[panel.metric.name])
                    drawing.text(axis, f"{row['qpa.n_mlp']:g}", at, (5, 2), style["color"])
        _reported_marks(axis, panel)
        drawing.parameters_axis(axis)
        drawing.metric_axis(axis, panel)
        drawing.legend(axis, beside)
    return figure


def pareto_front(runs: pd.DataFrame) -> Figure:
    """The metric against parameters for every method, and the front that none of them beats.

    A method has one colour and marker, or where there is but one, whatever makes its tensors; they
    are filled where a circuit does, by half where that is the paper's or the released one, or is
    not trained. What went wrong stands at the upper edge, with its value.
    """
    panels = list(drawing.panels(aggregate(runs), by_method=False))
    figure, axes = drawing.grid(panels, width=5.6, height=4.2)
    for axis, panel in zip(axes, panels, strict=True):
        metric = panel.metric.name
        front = pareto(panel.table, panel.metric)
        axis.step(
            front["trainable_params"], front[metric], where="post",
            color="0.6", linewidth=4, alpha=0.5, label="Pareto front", zorder=1,
        )  # fmt: skip
        wrong = panel.values > panel.edge
        shown = replace(panel, table=panel.table[~wrong])
        for points, style in _by_generator(shown.table):
            drawing.curve(axis, points, "trainable_params", metric, join=False, **style)
        for _, row in panel.table[wrong].iterrows():
            drawing.at_the_edge(axis, (row["trainable_params"], panel.edge), "^", row[metric])
        drawing.parameters_axis(axis)
        drawing.metric_axis(axis, shown)
        drawing.legend(axis, beside=True)
    return figure


def over(runs: pd.DataFrame, key: str, label: str | None = None, log: bool = False) -> Figure:
    """The metric over the values of one key, a star at the optimum, LoRA's level as a line.

    Args:
        runs: rows of runs.
        key: the key on the horizontal axis.
        label: its name there.
        log: whether that axis is logarithmic, to base 2.
    """
    panels = list(drawing.panels(aggregate(runs)))
    figure, axes = drawing.grid(panels)
    for axis, panel in zip(axes, panels, strict=True):
        metric = panel.metric.name
        generated = panel.table[panel.table["qpa.variant"] != "off"].sort_values(key)
        for _, row in _levels(panel.table, generated).iterrows():
            axis.axhline(row[metric], color="black", linestyle="--", label=_with_rank(row))
        for (name, points), style in zip(_series(generated, None), drawing.styles(), strict=False):
            drawing.curve(axis, points, key, metric, label=name, **style)
            top = best(points, panel.metric)
            at = (top[key], top[metric])
            drawing.star(axis, at, 15, drawing.COLOURS[4], f"optimum: {top[key]:g}")
        if log and not generated.empty:
            drawing.powers_axis(axis, generated[key])
        axis.set_xlabel(label or key)
        drawing.metric_axis(axis, panel)
        axis.legend()
    return figure


def learning_rates(runs: pd.DataFrame) -> Figure:
    """The metric on validation over the learning rate; for each method and size a star at the best.

    Where a rate was too large the curve leaves the panel.
    """
    metric = ranked_by(runs)
    validation = validation_of(metric)
    runs = runs[runs[validation].notna()].astype({validation: float})
    if runs.empty:
        raise InputError(f"No run of this study has measured a validation {metric.name}.")
    table = aggregate(runs)
    figure, axis, curves = _by_size(table, _RATE, validation)
    for points, colour in curves:
        top = best(points, metric, validation)
        drawing.star(axis, (top[_RATE], top[validation]), 12, colour)
    axis.set_xlabel("learning rate")
    axis.set_ylabel(f"validation {metric.label}")
    if metric.smaller_is_better:
        edge = drawing.EDGE * max(points[validation].min() for points, _ in curves)
        if table[validation].max() > edge:
            axis.set_ylim(0.9 * table[validation].min(), edge)
    drawing.legend(axis, beside=True)
    return figure


def amounts(runs: pd.DataFrame) -> Figure:
    """The metric over the amount of text that is trained on, for each method and size."""
    if "train_tokens" not in runs or runs["train_tokens"].isna().all():
        raise InputError("No run of this study has recorded train_tokens: make it again.")
    metric = ranked_by(runs)
    table = aggregate(runs)
    known = table[table["train_tokens"].notna()]
    figure, axis, _ = _by_size(known, "train_tokens", metric.name)
    base = table[f"base_{metric.name}"].mean()
    axis.axhline(base, color="black", linestyle=":", label=f"not trained: {base:.1f}")
    axis.set_xlabel("tokens of training text")
    axis.set_ylabel(metric.label)
    drawing.legend(axis, beside=True)
    return figure


def _by_size(
    table: pd.DataFrame, x: str, y: str
) -> tuple[Figure, Axes, list[tuple[pd.DataFrame, Any]]]:
    """A curve for each method and size over a logarithmic axis; its points and its colour."""
    figure = Figure(figsize=(1.6 * drawing.WIDTH, 1.2 * drawing.HEIGHT), layout="constrained")
    axis = figure.subplots()
    curves = []
    by_name = table.sort_values(x).groupby(table.apply(_with_size, axis=1), sort=False)
    for (name, points), style in zip(by_name, drawing.many_styles(), strict=False):
        drawing.curve(axis, points, x, y, label=str(name), **style)
        curves.append((points, style["color"]))
    axis.set_xscale("log")
    drawing.plain_ticks(axis, sorted(table[x].unique()))
    return figure, axis, curves


def categories(runs: pd.DataFrame) -> Figure:
    """One line for each setting: every seed as a dot, the mean and its standard deviation."""
    table = aggregate(runs)
    panels = list(drawing.panels(table, by_method=False))
    lines = {label: wrap(label, _LINE, break_on_hyphens=False) for label in table["label"]}
    longest = max(len(line) for name in lines.values() for line in name)
    height = 1.2 + len(lines) * (0.1 + 0.18 * max(map(len, lines.values())))
    figure, axes = drawing.grid(panels, width=4.2 + 0.07 * longest, height=height)
    for axis, panel in zip(axes, panels, strict=True):
        metric = panel.metric.name
        worst_first = not panel.metric.smaller_is_better
        ordered = panel.table.sort_values(metric, ascending=worst_first).reset_index(drop=True)
        for place, (_, row) in enumerate(ordered.iterrows()):
            if row[metric] > panel.edge:
                drawing.at_the_edge(axis, (panel.edge, place), ">", row[metric])
                continue
            single = runs[runs["setting"] == row["setting"]][metric]
            dots: dict[str, Any] = {"color": drawing.COLOURS[0], "alpha": 0.5, "markersize": 4}
            axis.plot(single, [place] * len(single), "o", **dots)
            axis.errorbar(
                row[metric], place, xerr=_spread(row, metric),
                marker="D", color="black", capsize=3,
            )  # fmt: skip
        names = [
            "\n".join(lines[label]) + f"   ({count:,.0f})"
            for label, count in zip(ordered["label"], ordered["trainable_params"], strict=True)
        ]
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(panel.metric.label)
        axis.set_ylabel("setting (parameters)")
    return figure


# --- series -----------------------------------------------------------------------------------


def _by_generator(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """The settings of each method and of what makes its tensors, with their name and style."""
    table = table.assign(_by=table.apply(_generated_by, axis=1))
    several = len(set(table["_by"]) - {"off"}) > 1
    coloured_by = "peft.method" if table["peft.method"].nunique() > 1 else "_by"
    own = dict(zip(sorted(set(table[coloured_by])), drawing.paired_styles(), strict=False))
    for (_, by), points in table.groupby(["peft.method", "_by"]):
        first = points.iloc[0]
        name = family(first) + (f", {by}" if several and by != "off" else "")
        yield points, {**own[first[coloured_by]], **_FILLS.get(str(by), {}), "label": name}


def _generated_by(row: pd.Series) -> str:
    """The variant that makes a setting's tensors, or that no trained circuit does."""
    control = VARIANTS[row["qpa.variant"]].circuit and not has_trained_circuit(row)
    return _CONTROL if control else str(row["qpa.variant"])


def _series(
    table: pd.DataFrame, hue: str | Sequence[str] | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """QPA's settings, in one series for each variant, and for each value of ``hue``."""
    generated = table[table["qpa.variant"] != "off"]
    keys = [hue] if isinstance(hue, str) else list(hue or [])
    # A method without a rank has no series for each; but shots that are null are exact ones.
    keys = [k for k in keys if k in generated and (k == _SHOTS or generated[k].notna().any())]
    filled = {
        key: generated[key].astype(object).where(generated[key].notna(), "exact") for key in keys
    }
    for values, points in generated.assign(**filled).groupby(["qpa.variant", *keys], sort=False):
        name = f"{family(points.iloc[0])} ({values[0]})"
        if keys:
            pairs = zip(keys, values[1:], strict=True)
            parts = [f"{key.split('.')[-1]} = {_short(value)}" for key, value in pairs]
            name = f"QPA, {', '.join(parts)}"
        yield name, points.sort_values("trainable_params")


def _classical_curve(axis: Axes, panel: drawing.Panel) -> None:
    """The classical method, each point with its rank beyond its error bar.

    Above and below in turn, since neighbours may be close.
    """
    classical = panel.table[panel.table["qpa.variant"] == "off"].sort_values("trainable_params")
    if classical.empty:
        return
    metric = panel.metric.name
    name = family(classical.iloc[0])
    drawing.curve(axis, classical, "trainable_params", metric, label=name, **drawing.CLASSICAL)
    if "peft.r" not in classical or not classical["peft.r"].notna().any():
        return
    for place, (_, row) in enumerate(classical.iterrows()):
        up, va = (1, "bottom") if place % 2 else (-1, "top")
        at = (row["trainable_params"], row[metric] + up * _spread(row, metric))
        drawing.text(axis, f"r={row['peft.r']:g}", at, (0, 5 * up), "black", ha="center", va=va)


def _spread(row: pd.Series, metric: str) -> float:
    spread = row.get(f"{metric}_std", 0.0)
    return 0.0 if np.isnan(spread) else spread


def _reported_marks(axis: Axes, panel: drawing.Panel) -> None:
    """The paper's values as hollow marks, where model, text and metric are the paper's."""
    first = panel.table.iloc[0]
    if panel.metric.name != METRIC or first["data.name"] != "wikitext2":
        return
    rows = reported_perplexities(first["model.name"], first["peft.method"])
    for generated, name, marker in ((False, "paper: classical", "o"), (True, "paper: QPA", "s")):
        points = [
            (r.trainable_params, getattr(r, METRIC)) for r in rows if r.generated == generated
        ]
        if points:
            axis.plot(
                *zip(*points, strict=True), marker=marker, markersize=9, markerfacecolor="none",
                linestyle="none", color=drawing.COLOURS[1], label=name,
            )  # fmt: skip


def _levels(table: pd.DataFrame, generated: pd.DataFrame) -> pd.DataFrame:
    """The classical settings to compare with: those of a rank that is generated, if any."""
    classical = table[table["qpa.variant"] == "off"]
    same = classical[classical["peft.r"].isin(generated["peft.r"])]
    return classical if same.empty else same


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_size(row: pd.Series) -> str:
    variant = f", {row['qpa.variant']}" if is_generated(row) else ""
    return f"{family(row)}{variant} ({row['trainable_params']:,.0f})"


def _with_rank(row: pd.Series) -> str:
    rank = row.get("peft.r")
    return family(row) if rank is None or pd.isna(rank) else f"{family(row)}, r = {rank:.0f}"


# --- what a setting takes ---------------------------------------------------------------------


def qubits(runs: pd.DataFrame) -> Figure:
    """Qubits against trainable parameters (Eq. 8), for each method and model."""
    generated = runs[runs["qpa.variant"] != "off"]
    if generated.empty:
        raise InputError("No run of this study has qubits to show: all are qpa=off.")
    table = aggregate(generated)
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
    if not {"gradient_variance", "expectation_variance"} <= {*runs}:
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
        "parameters": parameters,
        "pareto": pareto_front,
        "over": over,
        "learning_rates": learning_rates,
        "amounts": amounts,
        "categories": categories,
        "qubits": qubits,
        "time": time,
        "gradient_variance": gradient_variance,
    },
)


def draw(runs: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """The figure that a study's file asks for: ``kind``, and its function's other arguments.

    Raises:
        InputError: no such kind, an argument that it does not take, or runs that lack what it
            shows.
    """
    options = dict(spec)
    kind = str(options.pop("kind", None))
    function = KINDS[kind]
    hints = typing.get_type_hints(function)
    try:
        inspect.signature(function).bind(runs, **options)
    except TypeError as error:
        raise InputError(f"figure {kind} does not take {options}: {error}.") from error
    for name, value in options.items():
        if not fits(value, hints[name]):
            raise InputError(f"figure {kind} does not take {name}={str(value)[:100]}.")
    hue = options.get("hue") or []
    for key in [hue] if isinstance(hue, str) else hue:
        if key not in runs:
            raise InputError(f"figure {kind}: {key[:100]} is no key of these runs.")
    if "key" in options and not is_numeric_dtype(runs.get(options["key"])):
        raise InputError(f"figure {kind}: {options['key'][:100]} has no number in these runs.")
    # In a label "$" begins a formula, and what is none would be an error: here it is a letter.
    shown = runs.map(_without_formula)
    with mpl.rc_context(drawing.STYLE):
        return function(shown, **{name: _without_formula(v) for name, v in options.items()})


def _without_formula(value: Any) -> Any:
    return value.replace("$", r"\$") if isinstance(value, str) else value
