"""The figures of a study, for print: one function for each kind, all from the table of runs.

Points are means over seeds, bars the standard deviation. Colours are Okabe and Ito's, which
colour-blind readers tell apart, and every series has a marker of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.errors import InputError
from qpa_exp.report.analysis import METRIC_NAMES, NAMES, aggregate, family, lowest, pareto, present
from qpa_exp.report.paper_values import reported_perplexities

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "sD^vP*X"
CLASSICAL: dict[str, Any] = {"color": "black", "marker": "o"}
_WIDTH, _HEIGHT = 4.2, 3.4
_MOST_LABELLED = 2
"""With more QPA series than that in one panel, labels would lie over each other."""

_MOST_INSIDE = 6
"""With as many QPA series, their names would lie over the curves: they go beside the panel."""

_SHOTS, _RATE, _VALIDATION = "qpa.shots", "optim.lr", "validation_perplexity"
_LINE = 84
"""Letters in a line of a setting's name."""
_FEWEST_TICKS = 3
_MOST_LINEAR = 5.0
_EDGE = 1.5
"""A setting whose perplexity is beyond that many times the unadapted model's went wrong."""

_CONTROL = "no trained circuit"
_HALF: dict[str, Any] = {"markerfacecoloralt": "white"}
_FILLS: dict[str, dict[str, Any]] = {
    "off": {"markerfacecolor": "white"}, "tuned": {},
    "paper": {**_HALF, "fillstyle": "left"}, "released": {**_HALF, "fillstyle": "top"},
    _CONTROL: {**_HALF, "fillstyle": "bottom"},
}  # fmt: skip

_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "svg.fonttype": "none", "lines.markersize": 5,
    "axes.formatter.useoffset": False, "axes.ymargin": 0.12,
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """The runs of one panel, and what is drawn of them."""

    title: str
    table: pd.DataFrame
    metric: str


# --- kinds ------------------------------------------------------------------------------------


def parameters(runs: pd.DataFrame, hue: str | Sequence[str] | None = None) -> Figure:
    """Perplexity against trainable parameters: the classical curve, and QPA's points.

    Args:
        runs: rows of runs.
        hue: the key, or keys, whose values are QPA series of their own: ``qpa.shots``.
    """
    panels = list(_panels(aggregate(runs)))
    drawn = [list(_series(panel.table, hue)) for panel in panels]
    beside = max(map(len, drawn), default=0) >= _MOST_INSIDE
    figure, axes = _grid(panels, width=_WIDTH + 2.2 * beside)
    for axis, panel, series in zip(axes, panels, drawn, strict=True):
        _classical_curve(axis, panel)
        for (name, points), style in zip(series, _styles(), strict=False):
            labelled = len(series) <= _MOST_LABELLED
            name += ", by n_mlp" if labelled else ""
            _curve(axis, points, "trainable_params", panel.metric, label=name, **style)
            if labelled:
                _annotate_beside(axis, points, panel.metric, "qpa.n_mlp", style["color"])
        _reported_marks(axis, panel)
        _log_parameters(axis)
        _perplexity_axis(axis, panel)
        _legend(axis, beside)
    return figure


def pareto_front(runs: pd.DataFrame) -> Figure:
    """Perplexity against parameters for every method, and the front that none of them beats.

    A method has one colour and marker, or where there is but one, whatever makes its tensors; they
    are filled where a circuit does, by half where that is the paper's or the released one, or is
    not trained. What went wrong stands at the upper edge, with its value.
    """
    table = aggregate(runs)
    panels = list(_panels(table, by_method=False))
    figure, axes = _grid(panels, width=5.6, height=4.2)
    for axis, panel in zip(axes, panels, strict=True):
        front = pareto(panel.table, panel.metric)
        axis.step(
            front["trainable_params"], front[panel.metric], where="post",
            color="0.6", linewidth=4, alpha=0.5, label="Pareto front", zorder=1,
        )  # fmt: skip
        edge = _edge(panel)
        wrong = panel.table[panel.metric] > edge
        shown = replace(panel, table=panel.table[~wrong])
        for points, style in _by_generator(shown.table):
            _curve(axis, points, "trainable_params", panel.metric, join=False, **style)
        for _, row in panel.table[wrong].iterrows():
            _off_the_axis(axis, (row["trainable_params"], edge), "^", row[panel.metric])
        _log_parameters(axis)
        _perplexity_axis(axis, shown)
        _legend(axis, beside=True)
    return figure


def over(runs: pd.DataFrame, key: str, label: str | None = None, log: bool = False) -> Figure:
    """Perplexity over the values of one key, a star at the optimum, LoRA's level as a line.

    Args:
        runs: rows of runs.
        key: the key on the horizontal axis.
        label: its name there.
        log: whether that axis is logarithmic, to base 2.
    """
    panels = list(_panels(aggregate(runs)))
    figure, axes = _grid(panels)
    for axis, panel in zip(axes, panels, strict=True):
        generated = panel.table[panel.table["qpa.variant"] != "off"].sort_values(key)
        for _, row in _levels(panel.table, generated).iterrows():
            axis.axhline(row[panel.metric], color="black", linestyle="--", label=_named(row))
        for (name, points), style in zip(_series(generated, None), _styles(), strict=False):
            _curve(axis, points, key, panel.metric, label=name, **style)
            best = lowest(points, panel.metric)
            axis.plot(
                best[key], best[panel.metric], marker="*", markersize=15, linestyle="none",
                color=COLOURS[4], markeredgecolor="black", zorder=5,
                label=f"optimum: {best[key]:g}",
            )  # fmt: skip
        if log and not generated.empty:
            axis.set_xscale("log", base=2)
            _plain_ticks(axis, sorted(generated[key].unique()), "{:g}".format)
        axis.set_xlabel(label or key)
        _perplexity_axis(axis, panel)
        axis.legend()
    return figure


def learning_rates(runs: pd.DataFrame) -> Figure:
    """Validation perplexity over the learning rate; for each method and size a star at the best.

    Where a rate was too large the curve leaves the panel.
    """
    runs = runs[runs[_VALIDATION].notna()].astype({_VALIDATION: float})
    if runs.empty:
        raise InputError("No run of this study has measured a validation perplexity.")
    table = aggregate(runs)
    figure = Figure(figsize=(1.6 * _WIDTH, 1.2 * _HEIGHT), layout="constrained")
    axis = figure.subplots()
    names = table.apply(_with_size, axis=1)
    for name, style in zip(dict.fromkeys(names), _many_styles(), strict=False):
        points = table[names == name]
        _curve(axis, points, _RATE, _VALIDATION, label=name, **style)
        best = lowest(points, _VALIDATION)
        axis.plot(
            best[_RATE], best[_VALIDATION], marker="*", markersize=12, linestyle="none",
            color=style["color"], markeredgecolor="black", zorder=5,
        )  # fmt: skip
    axis.set_xscale("log")
    _plain_ticks(axis, sorted(table[_RATE].unique()), "{:g}".format)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation perplexity (real tokens)")
    top = _EDGE * table.groupby(names)[_VALIDATION].min().max()
    if table[_VALIDATION].max() > top:
        axis.set_ylim(0.9 * table[_VALIDATION].min(), top)
    _legend(axis, beside=True)
    return figure


def qubits(runs: pd.DataFrame) -> Figure:
    """Qubits against trainable parameters (Eq. 8), for each method and model."""
    table = aggregate(runs[runs["qpa.variant"] != "off"])
    figure, axis = _single()
    groups = table.groupby(["model.name", "peft.method"], sort=False)
    for ((model, method), points), style in zip(groups, _styles(), strict=False):
        points = points.sort_values("trainable_params")
        label = f"QPA {NAMES.get(str(method), method)}, {model}"
        if axis.lines:  # the same points, often: hollow, so that both are seen
            style |= {"markerfacecolor": "none", "markersize": 10, "linestyle": "--"}
        axis.plot(points["trainable_params"], points["n_qubits"], label=label, **style)
    _log_parameters(axis)
    axis.set_ylabel("qubits N")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


def time(runs: pd.DataFrame) -> Figure:
    """Seconds of training, and of one step, against trainable parameters."""
    table = aggregate(runs)
    several_lengths = table["trainer.max_epochs"].nunique() > 1
    figure = Figure(figsize=(2 * _WIDTH, _HEIGHT), layout="constrained")
    names = {
        "train_seconds": "seconds of training",
        "step_seconds_median": "seconds a step, median",
    }
    for axis, (column, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        keys = table.apply(lambda row: _timed(row, several_lengths), axis=1)
        for name, style in zip(dict.fromkeys(keys), _many_styles(), strict=False):
            _curve(axis, table[keys == name], "trainable_params", column, label=name, **style)
        _log_parameters(axis)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
    _legend(axis, beside=True)
    return figure


def _timed(row: pd.Series, with_length: bool) -> str:
    name = f"{family(row)}, {row['model.name']}"
    return f"{name}, max_epochs = {row['trainer.max_epochs']:g}" if with_length else name


def categories(runs: pd.DataFrame) -> Figure:
    """One line for each setting: every seed as a dot, the mean and its standard deviation."""
    table = aggregate(runs)
    panels = list(_panels(table, by_method=False))
    lines = {label: wrap(label, _LINE, break_on_hyphens=False) for label in table["label"]}
    longest = max(len(line) for name in lines.values() for line in name)
    height = 1.2 + len(lines) * (0.1 + 0.18 * max(map(len, lines.values())))
    figure, axes = _grid(panels, width=4.2 + 0.07 * longest, height=height)
    for axis, panel in zip(axes, panels, strict=True):
        ordered = panel.table.sort_values(panel.metric, ascending=False).reset_index(drop=True)
        edge = _edge(panel)
        for place, (_, row) in enumerate(ordered.iterrows()):
            if row[panel.metric] > edge:
                _off_the_axis(axis, (edge, place), ">", row[panel.metric])
                continue
            single = runs[runs["setting"] == row["setting"]][panel.metric]
            axis.plot(single, [place] * len(single), "o", color=COLOURS[0], alpha=0.5, markersize=4)
            axis.errorbar(
                row[panel.metric], place, xerr=_bar(row[f"{panel.metric}_std"]),
                marker="D", color="black", capsize=3,
            )  # fmt: skip
        names = [
            "\n".join(lines[label]) + f"   ({count:,.0f})"
            for label, count in zip(ordered["label"], ordered["trainable_params"], strict=True)
        ]
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(METRIC_NAMES[panel.metric])
        axis.set_ylabel("setting (parameters)")
    return figure


def gradient_variance(runs: pd.DataFrame) -> Figure:
    """Variance of the circuit's gradient against N and L: QPA's loss, and an expectation value."""
    table = aggregate(runs)
    figure = Figure(figsize=(2.3 * _WIDTH, 2 * _HEIGHT), layout="constrained")
    rows = {"gradient_variance": "QPA's loss", "expectation_variance": "the probability of |0...0>"}
    columns = (
        ("n_qubits", "qpa.n_layers", "qubits N", "L"),
        ("qpa.n_layers", "n_qubits", "L", "N"),
    )
    for axes, (measured, name) in zip(figure.subplots(2, 2), rows.items(), strict=True):
        for axis, (x, hue, label, symbol) in zip(axes, columns, strict=True):
            groups = table.sort_values(x).groupby(hue)
            for (value, points), style in zip(groups, _many_styles(), strict=False):
                axis.plot(points[x], points[measured], label=f"{symbol} = {value:g}", **style)
            axis.set_yscale("log")
            if x == "qpa.n_layers":
                axis.set_xscale("log", base=2)
                _plain_ticks(axis, sorted(table[x].unique()), "{:g}".format)
            else:
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel(label)
            axis.set_ylabel(f"gradient variance of\n{name}")
            _legend(axis, beside=True)
    return figure


KINDS: dict[str, Callable[..., Figure]] = {
    "parameters": parameters,
    "pareto": pareto_front,
    "over": over,
    "learning_rates": learning_rates,
    "qubits": qubits,
    "time": time,
    "categories": categories,
    "gradient_variance": gradient_variance,
}


def draw(runs: pd.DataFrame, spec: Mapping[str, Any]) -> Figure:
    """The figure that a study's file asks for: ``kind``, and its function's other arguments.

    Raises:
        InputError: no such kind, or an argument that it does not take.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise InputError(f"figure kind {kind} is unknown: give one of {', '.join(KINDS)}.")
    with mpl.rc_context(_STYLE):
        try:
            return KINDS[kind](runs, **options)
        except TypeError as error:
            raise InputError(f"figure {kind} does not take {options}: {error}.") from error


# --- pieces -----------------------------------------------------------------------------------


def _panels(table: pd.DataFrame, *, by_method: bool = True) -> Iterator[Panel]:
    """One panel for each model, text, method and perplexity."""
    keys = ["model.name", "data.name", *(["peft.method"] if by_method else [])]
    for values, part in table.groupby(keys, sort=False):
        model, data, *method = values
        for metric in present(part):
            name = "".join(f", {NAMES.get(str(m), m)}" for m in method)
            base = part[f"base_{metric}"].mean()
            title = f"{model} on {data}{name}\n(unadapted: {base:.4g})"
            yield Panel(title, part[part[metric].notna()], metric)


def _grid(
    panels: Sequence[Panel], width: float = _WIDTH, height: float = _HEIGHT
) -> tuple[Figure, list[Axes]]:
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // max(columns, 1))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title)
    return figure, axes[: len(panels)]


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH * 1.3, _HEIGHT * 1.1), layout="constrained")
    return figure, figure.subplots()


def _styles() -> Iterator[dict[str, Any]]:
    for colour, marker in zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False):
        yield {"color": colour, "marker": marker}


def _method_styles() -> Iterator[dict[str, Any]]:
    """Every pair of a colour and a marker, once."""
    for shift in range(len(MARKERS)):
        for place, colour in enumerate(COLOURS):
            yield {"color": colour, "marker": MARKERS[(place + shift) % len(MARKERS)]}


def _by_generator(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """The settings of each method and of what makes its tensors, with their name and style."""
    table = table.assign(_by=table.apply(_generated_by, axis=1))
    several = len(set(table["_by"]) - {"off"}) > 1
    coloured_by = "peft.method" if table["peft.method"].nunique() > 1 else "_by"
    styles = dict(zip(sorted(set(table[coloured_by])), _method_styles(), strict=False))
    for (_, by), points in table.groupby(["peft.method", "_by"]):
        first = points.iloc[0]
        name = family(first) + (f", {by}" if several and by != "off" else "")
        yield points, {**styles[first[coloured_by]], **_FILLS[str(by)], "label": name}


def _generated_by(row: pd.Series) -> str:
    """The variant that makes a setting's tensors, or that no trained circuit does."""
    control = row["qpa.variant"] != "off" and not ANSATZE[row["qpa.ansatz"]].trains_circuit
    return _CONTROL if control else str(row["qpa.variant"])


def _many_styles() -> Iterator[dict[str, Any]]:
    """Past eight series the markers are hollow and the lines dashed, and then the lines dotted."""
    yield {**CLASSICAL, "linestyle": "-"}
    for line, fill in itertools.cycle((("-", None), ("--", "white"), (":", None))):
        for colour, marker in zip(COLOURS, MARKERS, strict=True):
            style = {"color": colour, "marker": marker, "linestyle": line}
            yield style if fill is None else {**style, "markerfacecolor": fill}


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
            parts = [
                f"{k.split('.')[-1]} = {_short(v)}" for k, v in zip(keys, values[1:], strict=True)
            ]
            name = f"QPA, {', '.join(parts)}"
        yield name, points.sort_values("trainable_params")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _classical_curve(axis: Axes, panel: Panel) -> None:
    classical = panel.table[panel.table["qpa.variant"] == "off"].sort_values("trainable_params")
    if classical.empty:
        return
    name = family(classical.iloc[0])
    _curve(axis, classical, "trainable_params", panel.metric, label=name, **CLASSICAL)
    if "peft.r" in classical and classical["peft.r"].notna().any():
        _annotate(axis, classical, panel.metric, "peft.r", prefix="r=", colour="black")


def _curve(
    axis: Axes, points: pd.DataFrame, x: str, y: str, *, label: str, join: bool = True, **style: Any
) -> None:
    points = points.sort_values(x)
    if not join:
        style["linestyle"] = "none"
    spread = points[f"{y}_std"].fillna(0.0) if f"{y}_std" in points else pd.Series(dtype=float)
    if spread.any():
        style |= {"yerr": spread, "capsize": 3}
    axis.errorbar(points[x], points[y], label=label, **style)


def _bar(spread: float) -> float:
    return 0.0 if np.isnan(spread) else spread


def _annotate(
    axis: Axes, points: pd.DataFrame, y: str, key: str, *, colour: str, prefix: str = ""
) -> None:
    """Name each point beyond its error bar, above and below in turn: neighbours may be close."""
    for place, (_, row) in enumerate(points.iterrows()):
        up = 1 if place % 2 else -1
        end = row[y] + up * _bar(row.get(f"{y}_std", 0.0))
        va = "bottom" if up == 1 else "top"
        at = (row["trainable_params"], end)
        _name(axis, f"{prefix}{row[key]:g}", at, (0, 5 * up), colour, ha="center", va=va)


def _annotate_beside(axis: Axes, points: pd.DataFrame, y: str, key: str, colour: str) -> None:
    """Name points of a steep curve, which falls to the right: upwards of there is room."""
    for _, row in points.iterrows():
        _name(axis, f"{row[key]:g}", (row["trainable_params"], row[y]), (5, 2), colour)


def _name(
    axis: Axes, text: str, at: tuple[Any, Any], beside: tuple[int, int], colour: str, **place: Any
) -> None:
    """Small text so many points beside a mark."""
    axis.annotate(
        text, at, textcoords="offset points", xytext=beside, fontsize=7, color=colour, **place
    )


def _reported_marks(axis: Axes, panel: Panel) -> None:
    """The paper's values as hollow marks, where model, text and perplexity are the paper's."""
    first = panel.table.iloc[0]
    if panel.metric != "perplexity_padded" or first["data.name"] != "wikitext2":
        return
    rows = reported_perplexities(first["model.name"], first["peft.method"])
    for generated, name, marker in ((False, "paper: classical", "o"), (True, "paper: QPA", "s")):
        chosen = [row for row in rows if row.generated == generated]
        if chosen:
            axis.plot(
                [row.trainable_params for row in chosen],
                np.array([row.perplexity_padded for row in chosen], dtype=float),
                marker=marker, markersize=9, markerfacecolor="none", linestyle="none",
                color=COLOURS[1], label=name,
            )  # fmt: skip


def _legend(axis: Axes, beside: bool) -> None:
    """Names in the panel where it has room, or at its right."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
    axis.legend(**place)


def _log_parameters(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters")
    low, high = axis.get_xlim()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [t * 10**e for e in range(2, 10) for t in steps if low <= t * 10**e <= high]
        if len(ticks) >= _FEWEST_TICKS:
            break
    _plain_ticks(axis, ticks)


def _edge(panel: Panel) -> float:
    """The perplexity from which on a setting went wrong."""
    values = panel.table[panel.metric]
    return _EDGE * max(panel.table[f"base_{panel.metric}"].mean(), values.min())


def _off_the_axis(axis: Axes, place: tuple[Any, Any], marker: str, value: float) -> None:
    """A setting that went wrong stands at the edge with its value, so that the others are seen."""
    axis.plot(*place, marker=marker, color=COLOURS[1], clip_on=False)
    _name(axis, f"{value:.2g}", place, (-6, 0), COLOURS[1], ha="right", va="center")


def _perplexity_axis(axis: Axes, panel: Panel) -> None:
    """Logarithmic where the largest perplexities would press the others together."""
    axis.set_ylabel(METRIC_NAMES[panel.metric])
    values = panel.table[panel.metric]
    if values.min() > 0 and values.max() / values.min() > _MOST_LINEAR:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def _plain_ticks(
    axis: Axes, ticks: Sequence[Any], name: Callable[[Any], str] | None = None
) -> None:
    axis.set_xticks(ticks, [(name or _thousands)(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _thousands(number: float | int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def _levels(table: pd.DataFrame, generated: pd.DataFrame) -> pd.DataFrame:
    """The classical settings to compare with: those of a rank that is generated, if any."""
    classical = table[table["qpa.variant"] == "off"]
    same = classical[classical["peft.r"].isin(generated["peft.r"])]
    return classical if same.empty else same


def _with_size(row: pd.Series) -> str:
    variant = "" if row["qpa.variant"] == "off" else f", {row['qpa.variant']}"
    return f"{family(row)}{variant} ({row['trainable_params']:,.0f})"


def _named(row: pd.Series) -> str:
    rank = row.get("peft.r")
    return family(row) if rank is None or pd.isna(rank) else f"{family(row)}, r = {rank:.0f}"
