"""The figures that a study's file may ask for, by kind, all drawn from the table of runs.

Points are means over seeds, bars the standard deviation.
"""

from __future__ import annotations

import inspect
import typing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from pandas.api.types import is_numeric_dtype

from qpa_exp.errors import InputError
from qpa_exp.files import fits
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.registry import Registry
from qpa_exp.report import drawing, labels
from qpa_exp.report.comparisons import (
    aggregate,
    best,
    family,
    has_trained_circuit,
    is_generated,
    pareto,
    ranked_by,
)
from qpa_exp.report.tables import METRIC, REPORTED
from qpa_exp.runs.directory import validation_key

_RATE, _LENGTH = "optim.lr", "trainer.max_epochs"
_LINE = 42
"""Letters in a line of a setting's name."""
_MOST, _FEWEST = 120, 15
"""The settings that a whole figure shows, and a panel of many."""
_FEW_LINES = 5
"""The rows from which the axis is as long as the words beside it."""


def parameters(
    runs: pd.DataFrame, hue: str | Sequence[str] | None = None, metric: str | None = None,
    about: str = "",
) -> drawing.Canvas:  # fmt: skip
    """Return the metric against trainable parameters: the classical curve, and QPA's points.

    Args:
        runs: rows of runs.
        hue: the key, or keys, whose values are QPA series of their own: ``qpa.shots``.
        metric: the one to draw; None = each that the runs have.
        about: the model and the text, for people.
    """
    panels = list(drawing.panels(aggregate(runs), metric=metric, about=about))
    drawn = drawing.of_panels(panels, 3.9 if len(panels) == 1 else 3.6)
    for axis, panel in zip(drawn.axes, panels, strict=True):
        name = panel.metric.name
        drawing.metric_axis(axis, panel)
        _classical_curve(drawn, axis, panel)
        series = list(_series(panel.table, hue))
        for (label, points), style in zip(series, drawing.several(), strict=False):
            places = drawn.curve(axis, points, "trainable_params", name, label, **style)
            if len(series) == 1 and len(points) > 1:
                for place, n_mlp in zip(places, points["qpa.n_mlp"], strict=True):
                    said = f"n_mlp = {n_mlp:,.0f}" if place == places[0] else f"{n_mlp:,.0f}"
                    drawn.name(axis, said, [place], style["color"], size=drawing.SMALL)
        _reported_marks(drawn, axis, panel)
        drawing.parameters_axis(axis)
        drawing.baseline(drawn, axis, panel)
    return drawn


def pareto_front(runs: pd.DataFrame, metric: str | None = None, about: str = "") -> drawing.Canvas:
    """Return the metric against parameters for every method, and the front that none of them beats.

    Marks are filled where a trained circuit makes a method's tensors as ``qpa=tuned`` does. What
    went wrong stands at the upper edge, with its value.
    """
    panels = list(drawing.panels(aggregate(runs), by_method=False, metric=metric, about=about))
    drawn = drawing.of_panels(panels, 4.6, columns=1)
    for axis, panel in zip(drawn.axes, panels, strict=True):
        y = panel.metric.name
        front = pareto(panel.table, panel.metric)
        at_front = list(zip(front["trainable_params"], front[y], strict=True))
        wrong = panel.values > panel.edge
        shown = replace(panel, table=panel.table[~wrong])
        (step,) = axis.step(
            *zip(*at_front, strict=True), where="post",
            color=drawing.GRID, linewidth=6, label="Pareto front", zorder=0.5,
        )  # fmt: skip
        makers = _makers(shown.table)
        for name, points, style in _styled(shown.table, makers, makers):
            style["linestyle"] = "none"
            places = drawn.curve(axis, points, "trainable_params", y, name, **style)
            first = points.iloc[0]
            if not is_generated(first) and points["peft.r"].nunique() > 1:
                for place, said in zip(places, _ranks(points), strict=True):
                    drawn.name(axis, said, [place], style["color"], size=drawing.SMALL)
        drawn.name(axis, "Pareto front", at_front, drawing.MUTED, step, size=drawing.SMALL)
        for _, row in panel.table[wrong].iterrows():
            place, colour = (row["trainable_params"], panel.beyond), _role(row, panel.table)
            value = drawing.went_wrong(axis, place, "^", colour, row[y])
            name = labels.maker(row, panel.table) if is_generated(row) else _with_rank(row)
            drawn.name(axis, f"{name}: {value}", [place], colour, size=drawing.SMALL)
        drawing.parameters_axis(axis)
        drawing.metric_axis(axis, shown)
        drawing.baseline(drawn, axis, panel)
    return drawn


def over(
    runs: pd.DataFrame, key: str, label: str | None = None, log: bool = False,
    metric: str | None = None, about: str = "",
) -> drawing.Canvas:  # fmt: skip
    """Return the metric over the values of one key, a star at the optimum, LoRA's level as a line.

    Args:
        runs: rows of runs.
        key: the key on the horizontal axis.
        label: its name there.
        log: whether that axis is logarithmic, to base 2.
        metric: the one to draw; None = each that the runs have.
        about: the model and the text, for people.
    """
    panels = list(drawing.panels(aggregate(runs), metric=metric, about=about))
    drawn = drawing.of_panels(panels)
    for axis, panel in zip(drawn.axes, panels, strict=True):
        y = panel.metric.name
        generated = panel.table[panel.table["qpa.variant"] != "off"].sort_values(key)
        for _, row in _levels(panel.table, generated).iterrows():
            name = _with_rank(row)
            level = axis.axhline(
                row[y], color=drawing.CLASSICAL, linestyle="--", linewidth=1.2, label=name
            )
            places = [(place, row[y]) for place in np.linspace(0.03, 0.97, 9)]
            drawn.name(axis, name, places, drawing.CLASSICAL, level, axis.get_yaxis_transform())
        for (name, points), style in zip(_series(generated, None), drawing.several(), strict=False):
            drawn.curve(axis, points, key, y, name, **style)
            top = best(points, panel.metric)
            at, said = (top[key], top[y]), f"optimum: {top[key]:g}"
            drawing.star(axis, at, 13, style["color"], said)
            drawn.name(axis, said, [at], drawing.INK, axis.lines[-1], size=drawing.SMALL)
        if log and not generated.empty:
            drawing.powers_axis(axis, generated[key])
        axis.set_xlabel(label or labels.name_of(key))
        drawing.metric_axis(axis, panel)
        drawing.baseline(drawn, axis, panel)
    return drawn


def learning_rates(runs: pd.DataFrame, about: str = "") -> drawing.Canvas:
    """Return the metric on validation over the learning rate.

    For each method and size a star at the best.

    Where a rate was too large the curve leaves the panel.
    """
    metric = ranked_by(runs)
    validation = validation_key(metric.name)
    runs = runs[runs[validation].notna()].astype({validation: float})
    if runs.empty:
        raise InputError(f"No run of this study has measured a validation {metric.name}.")
    table = aggregate(runs)
    drawn, axis, curves = _by_size(table, _RATE, _RATE, validation, about)
    for points, colour in curves:
        top = best(points, metric, validation)
        drawing.star(axis, (top[_RATE], top[validation]), 10, colour)
    axis.set_xlabel("learning rate; a star at the best of each")
    axis.set_ylabel(f"validation {metric.label}")
    if metric.smaller_is_better:
        edge = drawing.EDGE * max(points[validation].min() for points, _ in curves)
        if table[validation].max() > edge:
            axis.set_ylim(0.9 * table[validation].min(), edge)
    return drawn


def amounts(runs: pd.DataFrame, metric: str | None = None, about: str = "") -> drawing.Canvas:
    """Return the metric over the amount of text that is trained on, for each method and size."""
    if "train_tokens" not in runs or runs["train_tokens"].isna().all():
        raise InputError("No run of this study has recorded train_tokens: make it again.")
    table = aggregate(runs)
    panel = next(drawing.panels(table, by_method=False, metric=metric, about=about))
    known = panel.table[panel.table["train_tokens"].notna()]
    drawn, axis, _ = _by_size(known, "train_tokens", "data.train_split", panel.metric.name, about)
    axis.set_xlabel("tokens of training text")
    axis.set_ylabel(panel.metric.label)
    drawing.baseline(drawn, axis, replace(panel, table=known))
    return drawn


def _by_size(
    table: pd.DataFrame, x: str, key: str, y: str, about: str
) -> tuple[drawing.Canvas, Axes, list[tuple[pd.DataFrame, Any]]]:
    """Give a curve for each method and size over a logarithmic axis; its points and its colour."""
    makers = _makers(table)
    names = labels.named_without(table, key)
    if names is None:  # runs of no study
        names = makers + table["trainable_params"].map(" ({:,.0f})".format)
    title = next(drawing.panels(table, by_method=False, about=about)).title
    drawn = drawing.canvas(1, max(4.4, 0.9 + 0.19 * names.nunique()))
    axis = drawn.axes[0]
    drawn.title(axis, title)
    curves = []
    for name, points, style in _styled(table.sort_values(x), names, makers):
        drawing.curve(axis, points, x, y, label=name, **style)
        places = list(zip(points[x], points[y], strict=True))
        drawn.name_end(axis, name, places, style["color"])
        curves.append((points, style["color"]))
    axis.set_xscale("log")
    drawing.plain_ticks(axis, sorted(table[x].unique()), "{:,g}".format)
    return drawn, axis, curves


def categories(
    runs: pd.DataFrame, metric: str | None = None, about: str = "",
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> drawing.Canvas:  # fmt: skip
    """One line for each setting: every seed as a dot, the mean and its standard deviation.

    Where there are very many, a panel has the best ones, and says so.

    Args:
        runs: rows of runs.
        metric: the one to draw; None = each that the runs have.
        about: the model and the text, for people.
        groups: settings that stand together under a heading, as :func:`labels.grouped` has them.
    """
    table = aggregate(runs)
    table = table.join(labels.grouped(table, groups).add_prefix("_"))
    panels = list(drawing.panels(table, by_method=False, metric=metric, about=about))
    panels = [_best_of(panel, max(_FEWEST, _MOST // max(len(panels), 1))) for panel in panels]
    rows = [_lines_of(panel) for panel in panels]
    most = max((sum(line.height for line in lines) for lines in rows), default=1)
    drawn = drawing.of_panels(panels, 1.25 + 0.2 * most, columns=1)
    for axis, panel, lines in zip(drawn.axes, panels, rows, strict=True):
        y = panel.metric.name
        heights = np.array([line.height for line in lines])
        places = heights.cumsum() - heights / 2
        for place, line in zip(places, lines, strict=True):
            row = line.row
            if row is None:
                continue
            colour = _role(row, table)
            if row[y] > panel.edge:
                value = drawing.went_wrong(axis, (panel.beyond, place), ">", colour, row[y])
                axis.annotate(
                    value, (panel.beyond, place), (-7, 0), textcoords="offset points",
                    color=colour, size=drawing.SMALL, ha="right", va="center",
                    bbox=drawing.BEHIND,
                )  # fmt: skip
                continue
            single = runs[runs["setting"] == row["setting"]][y]
            axis.plot(
                single, [place] * len(single), "o", color=colour, alpha=0.45, markersize=4,
                markeredgewidth=0,
            )  # fmt: skip
            spread = np.nan_to_num(row[f"{y}_std"])
            axis.errorbar(row[y], place, xerr=spread, marker="D", color=colour, capsize=2.5)
        axis.set_yticks(places, [line.text for line in lines])
        for tick, line in zip(axis.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("bold" if line.row is None else "normal")
        axis.set_ylim(heights.sum() + 0.2, -0.2)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        counts = axis.secondary_yaxis("right")
        counts.set_yticks(
            places, ["" if r.row is None else f"{r.row['trainable_params']:,.0f}" for r in lines]
        )
        counts.tick_params(length=0, labelcolor=drawing.MUTED)
        counts.spines["right"].set_visible(False)
        words = "trainable\nparameters" if len(lines) < _FEW_LINES else "trainable parameters"
        counts.set_ylabel(words, color=drawing.MUTED)
        axis.set_xlabel(f"{panel.metric.label}; a dot for each seed, a diamond for their mean")
        drawing.baseline(drawn, axis, panel, across=True)
    return drawn


class _Line:
    """A row of the figure: a setting's, or where ``row`` is None a heading."""

    def __init__(self, text: str, row: pd.Series | None) -> None:
        lines = wrap(drawing.shortened(text, 3 * _LINE), _LINE, break_on_hyphens=False) or [""]
        self.text, self.row = "\n".join(lines), row
        self.height = 0.35 + 0.85 * len(lines)


def _best_of(panel: drawing.Panel, most: int) -> drawing.Panel:
    """Return the panel with the best settings first, and so many at most."""
    order = panel.table.sort_values(
        panel.metric.name, ascending=panel.metric.smaller_is_better, kind="stable"
    )
    if len(order) <= most:
        return replace(panel, table=order)
    title = f"{panel.title}; the best {most} of {len(order)} settings, the table has all"
    return replace(panel, title=title, table=order.head(most))


def _lines_of(panel: drawing.Panel) -> list[_Line]:
    """Return the settings as they are ordered, those of a group under its heading."""
    order = panel.table
    groups = order["_group"].where(order["_name"] != "", "")
    lines: list[_Line] = []
    # Settings of no group stand first.
    for group, part in sorted(order.groupby(groups, sort=False), key=lambda found: found[0] != ""):
        lines += [_Line(f"{group}:", None)] * bool(group)
        lines += [_Line(row["_name"] or row["_group"], row) for _, row in part.iterrows()]
    return lines


# --- series -----------------------------------------------------------------------------------


def _role(row: pd.Series, table: pd.DataFrame) -> str:
    """Return the colour of what a setting is."""
    if is_generated(row):
        return drawing.QPA if has_trained_circuit(row) else drawing.CONTROL
    generated = set(table.loc[table["qpa.variant"] != "off", "peft.method"])
    alone = not generated or row["peft.method"] in generated
    return drawing.CLASSICAL if alone else drawing.RIVAL


_MARKERS = {
    drawing.QPA: "sD^hXp", drawing.CLASSICAL: "o8PvH<", drawing.RIVAL: "v^P*X<>pd",
    drawing.CONTROL: "Dsv^X",
}  # fmt: skip


def _makers(table: pd.DataFrame) -> pd.Series:
    """Return what makes each setting's tensors."""
    return table.apply(lambda row: labels.maker(row, table), axis=1)


def _styled(
    table: pd.DataFrame, names: pd.Series, makers: pd.Series
) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Yield the series of each name: its colour says what it is, its marker by whom it is made."""
    so_far = defaultdict[str, Counter[str]](Counter)
    for name, points in table.groupby(names, sort=False):
        first, maker = points.iloc[0], makers[points.index[0]]
        colour = _role(first, table)
        drawn, markers = so_far[colour], _MARKERS[colour]
        line = ("-", "--", ":", "-.")[drawn[maker] % 4]
        drawn[maker] += 1
        marker = markers[list(drawn).index(maker) % len(markers)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line}
        if colour == drawing.CONTROL or VARIANTS[first["qpa.variant"]].fixed:
            style |= {"markerfacecolor": drawing.GROUND, "markeredgewidth": 1.3}
        yield str(name), points, style


def _series(
    table: pd.DataFrame, hue: str | Sequence[str] | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """QPA's settings, in one series for each maker, and for each value of ``hue``."""
    generated = table[table["qpa.variant"] != "off"]
    if generated.empty:
        return
    keys = [hue] if isinstance(hue, str) else list(hue or [])
    # A method without a rank has no series for each; but shots that are null are exact ones.
    words = [
        generated[key].map(lambda value, key=key: labels.words_of(key, value))
        for key in keys
        if key in generated
        and (generated[key].notna().any() or labels.value_of(key, None) != "default")
    ]
    makers = _makers(generated)
    several = makers.nunique() > 1
    for values, points in generated.groupby([makers, *words], sort=False):
        maker, *said = map(str, values)
        head = maker if several or not said else "QPA"
        yield ", ".join([head, *said]), points.sort_values("trainable_params")


def _classical_curve(drawn: drawing.Canvas, axis: Axes, panel: drawing.Panel) -> None:
    """Draw the classical method, each point with its rank."""
    classical = panel.table[panel.table["qpa.variant"] == "off"].sort_values("trainable_params")
    if classical.empty:
        return
    metric, colour = panel.metric.name, drawing.CLASSICAL
    name = family(classical.iloc[0])
    places = drawn.curve(
        axis, classical, "trainable_params", metric, name, color=colour, marker="o"
    )
    if "peft.r" not in classical or not classical["peft.r"].notna().any():
        return
    for place, rank in zip(places, classical["peft.r"], strict=True):
        drawn.name(axis, f"r = {rank:g}", [place], colour, size=drawing.SMALL)


def _ranks(points: pd.DataFrame) -> list[str]:
    """Return each point's rank, and its learning rate where a rank has several."""
    several = points["peft.r"].duplicated().any() and points[_RATE].nunique() > 1
    rates = points[_RATE].map(lambda rate: f", {labels.words_of(_RATE, rate)}" if several else "")
    return [f"r = {r:g}{said}" for r, said in zip(points["peft.r"], rates, strict=True)]


def _reported_marks(drawn: drawing.Canvas, axis: Axes, panel: drawing.Panel) -> None:
    """Draw the paper's values as hollow marks, where model, text and metric are the paper's."""
    first = panel.table.iloc[0]
    if panel.metric.name != METRIC or first["data.name"] != "wikitext2":
        return
    own = (first["model.name"], first["peft.method"])
    rows = [r for r in REPORTED if (r.model, r.method) == own and r.perplexity_padded is not None]
    for generated, name, marker in ((False, "paper: classical", "o"), (True, "paper: QPA", "s")):
        points = [
            (r.trainable_params, r.perplexity_padded) for r in rows if r.generated == generated
        ]
        if points:
            (marks,) = axis.plot(
                *zip(*points, strict=True), marker=marker, markersize=9, markerfacecolor="none",
                linestyle="none", color=drawing.INK, label=name,
            )  # fmt: skip
            drawn.name(axis, name, points, drawing.INK, marks)


def _levels(table: pd.DataFrame, generated: pd.DataFrame) -> pd.DataFrame:
    """Return the classical settings to compare with: those of a rank that is generated, if any."""
    classical = table[table["qpa.variant"] == "off"]
    same = classical[classical["peft.r"].isin(generated["peft.r"])]
    return classical if same.empty else same


def _with_rank(row: pd.Series) -> str:
    rank = row.get("peft.r")
    return family(row) if rank is None or pd.isna(rank) else f"{family(row)} r = {rank:.0f}"


# --- what a setting takes ---------------------------------------------------------------------


def qubits(runs: pd.DataFrame, about: str = "") -> drawing.Canvas:
    """Qubits against trainable parameters (Eq. 8), for each method and model."""
    generated = runs[runs["qpa.variant"] != "off"]
    if generated.empty:
        raise InputError("No run of this study has qubits to show: all are qpa=off.")
    table = aggregate(generated)
    drawn = drawing.canvas(1, 3.6)
    axis = drawn.axes[0]
    if about:
        drawn.title(axis, about)
    groups = table.groupby(["model.name", "peft.method"], sort=False)
    several = table["model.name"].nunique() > 1
    for ((model, _), points), style in zip(groups, drawing.several(), strict=False):
        points = points.sort_values("trainable_params")
        if axis.lines:  # the same points, often: hollow, so that both are seen
            style |= {"markerfacecolor": "none", "markersize": 10, "linestyle": "--"}
        label = family(points.iloc[0]) + (f", {model}" if several else "")
        (line,) = axis.plot(points["trainable_params"], points["n_qubits"], label=label, **style)
        places = list(zip(points["trainable_params"], points["n_qubits"], strict=True))
        drawn.name(axis, label, places, style["color"], line)
    drawing.parameters_axis(axis)
    axis.set_ylabel("qubits N")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn


def time(runs: pd.DataFrame, about: str = "") -> drawing.Canvas:
    """Seconds of training, and of one step, against trainable parameters."""
    table = aggregate(runs)
    drawn = drawing.canvas(2, 3.6)
    columns = {"train_seconds": "seconds of training", "step_seconds_median": "seconds a step"}
    names = table.apply(family, axis=1)
    if table["model.name"].nunique() > 1:
        names += ", " + table["model.name"]
    if table[_LENGTH].nunique() > 1:
        names += ", " + table[_LENGTH].map(lambda epochs: labels.words_of(_LENGTH, epochs))
    for axis, (column, label) in zip(drawn.axes, columns.items(), strict=True):
        for name, points, style in _styled(table, names, names):
            drawn.curve(axis, points, "trainable_params", column, name, **style)
        drawing.parameters_axis(axis)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        drawn.title(axis, drawing.with_seeds(about or "all runs", table))
    return drawn


def gradient_variance(runs: pd.DataFrame, about: str = "") -> drawing.Canvas:
    """Variance of the circuit's gradient against N and L: QPA's loss, and an expectation value."""
    if not {"gradient_variance", "expectation_variance"} <= {*runs}:
        raise InputError(
            "No run of this study has measured its gradient's variance: "
            "that takes trainer.gradient_variance_starts=<starts>."
        )
    table = aggregate(runs)
    drawn = drawing.canvas(4, 3.1)
    rows = {"gradient_variance": "QPA's loss", "expectation_variance": "the probability of |0...0>"}
    columns = (
        ("n_qubits", "qpa.n_layers", "qubits N", "L"),
        ("qpa.n_layers", "n_qubits", "layers L", "N"),
    )
    panels = [(y, name, *column) for y, name in rows.items() for column in columns]
    for axis, (y, name, x, hue, label, symbol) in zip(drawn.axes, panels, strict=True):
        groups = table.sort_values(x).groupby(hue)
        for (value, points), style in zip(groups, drawing.several(), strict=False):
            said = f"{symbol} = {value:g}"
            axis.plot(points[x], points[y], label=said, **style)
            places = list(zip(points[x], points[y], strict=True))
            drawn.name_end(axis, said, places, style["color"])
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
        if x == "qpa.n_layers":
            drawing.powers_axis(axis, table[x])
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel(label)
        drawn.title(axis, f"gradient variance of {name}")
    return drawn


KINDS: Registry[Callable[..., drawing.Canvas]] = Registry(
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


def draw(
    runs: pd.DataFrame, spec: Mapping[str, Any], *, title: str = "", about: str = "",
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:  # fmt: skip
    """Return the figure that a study's file asks for: ``kind``, and its function's other arguments.

    Args:
        runs: rows of runs.
        spec: from the study's file.
        title: what it shows, in a sentence.
        about: the model and the text, where the study's scale says them.
        groups: settings that stand together.

    Raises:
        InputError: no such kind, an argument that it does not take, or runs that lack what it
            shows.
    """
    options = dict(spec)
    kind = str(options.pop("kind", None))
    function = KINDS[kind]
    hints = typing.get_type_hints(function)
    taken = inspect.signature(function)
    own = {"about": about, "groups": groups}
    try:
        if own.keys() & options.keys():
            raise TypeError("the study's file says them elsewhere")
        taken.bind(runs, **options)
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
    options |= {name: value for name, value in own.items() if name in taken.parameters}
    with mpl.rc_context(drawing.STYLE), drawing.any_letters():
        drawn = function(shown, **{name: _without_formula(v) for name, v in options.items()})
        return drawn.finish(_without_formula(title))


def _without_formula(value: Any) -> Any:
    return value.replace("$", r"\$") if isinstance(value, str) else value
