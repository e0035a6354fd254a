"""How every figure looks: panels, colours, marks and axes.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and every series has a marker of
its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.report.comparisons import measured
from qpa_exp.task import Metric

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "sD^vP*X"
CLASSICAL: dict[str, Any] = {"color": "black", "marker": "o"}
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "svg.fonttype": "none", "lines.markersize": 5,
    "axes.formatter.useoffset": False, "axes.ymargin": 0.12,
}  # fmt: skip
WIDTH, HEIGHT = 4.2, 3.4
EDGE = 1.5
"""A setting whose figure is beyond that many times the unadapted model's went wrong."""

_FEWEST_TICKS = 3
_MOST_LINEAR = 5.0


# --- panels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The settings of one panel, and what is drawn of them."""

    title: str
    table: pd.DataFrame
    metric: Metric

    @property
    def values(self) -> pd.Series:
        """The metric of every setting."""
        return self.table[self.metric.name]

    @property
    def edge(self) -> float:
        """The value beyond which a setting went wrong; infinite where larger is better."""
        if not self.metric.smaller_is_better:
            return float("inf")
        base = self.table[f"base_{self.metric.name}"].mean()
        return float(EDGE * max(self.values.min(), base))


def panels(table: pd.DataFrame, *, by_method: bool = True) -> Iterator[Panel]:
    """One panel for each task, model, text, method and metric."""
    keys = ["task", "model.name", "data.name", *(["peft.method"] if by_method else [])]
    for values, part in table.groupby(keys, sort=False):
        _, model, data, *method = values
        for metric in measured(part):
            name = "".join(f", {METHODS[str(m)].label}" for m in method)
            base = part[f"base_{metric.name}"].mean()
            title = f"{model} on {data}{name}\n(unadapted: {base:.4g})"
            yield Panel(title, part[part[metric.name].notna()], metric)


def grid(
    panels: Sequence[Panel], width: float = WIDTH, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    """Axes for the panels, with their titles: up to three side by side, four in a square."""
    columns = len(panels) if len(panels) < 4 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // max(columns, 1))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title)
    return figure, axes[: len(panels)]


# --- series -----------------------------------------------------------------------------------


def styles() -> Iterator[dict[str, Any]]:
    """A colour and a marker, again and again."""
    for colour, marker in zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False):
        yield {"color": colour, "marker": marker}


def paired_styles() -> Iterator[dict[str, Any]]:
    """Every pair of a colour and a marker, once."""
    for shift in range(len(MARKERS)):
        for place, colour in enumerate(COLOURS):
            yield {"color": colour, "marker": MARKERS[(place + shift) % len(MARKERS)]}


def many_styles() -> Iterator[dict[str, Any]]:
    """Past eight series the markers are hollow and the lines dashed, and then the lines dotted."""
    yield {**CLASSICAL, "linestyle": "-"}
    for line, fill in itertools.cycle((("-", None), ("--", "white"), (":", None))):
        for colour, marker in zip(COLOURS, MARKERS, strict=True):
            style = {"color": colour, "marker": marker, "linestyle": line}
            yield style if fill is None else {**style, "markerfacecolor": fill}


def curve(
    axis: Axes, points: pd.DataFrame, x: str, y: str, *, label: str, join: bool = True, **style: Any
) -> None:
    """One series from left to right, with bars of the standard deviation where there are seeds."""
    points = points.sort_values(x)
    if not join:
        style["linestyle"] = "none"
    spread = points[f"{y}_std"].fillna(0.0) if f"{y}_std" in points else pd.Series(dtype=float)
    if spread.any():
        style |= {"yerr": spread, "capsize": 3}
    axis.errorbar(points[x], points[y], label=label, **style)


def star(axis: Axes, at: tuple[Any, Any], size: int, colour: str, label: str = "") -> None:
    """The best of a series; without a label it has no line in the legend."""
    axis.plot(
        *at, marker="*", markersize=size, linestyle="none", color=colour,
        markeredgecolor="black", zorder=5, label=label or "_star",
    )  # fmt: skip


def text(
    axis: Axes, text: str, at: tuple[Any, Any], beside: tuple[int, int], colour: str, **place: Any
) -> None:
    """Small text so many points beside a mark."""
    axis.annotate(
        text, at, textcoords="offset points", xytext=beside, fontsize=7, color=colour, **place
    )


def at_the_edge(axis: Axes, place: tuple[Any, Any], marker: str, value: float) -> None:
    """A setting that went wrong stands at the edge with its value, so that the others are seen."""
    axis.plot(*place, marker=marker, color=COLOURS[1], clip_on=False)
    text(axis, f"{value:.2g}", place, (-6, 0), COLOURS[1], ha="right", va="center")


def legend(axis: Axes, beside: bool) -> None:
    """Names in the panel where it has room, or at its right."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
    axis.legend(**place)


# --- axes -------------------------------------------------------------------------------------


def parameters_axis(axis: Axes) -> None:
    """Trainable parameters, on a logarithmic scale with round numbers."""
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters")
    low, high = axis.get_xlim()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [t * 10**e for e in range(2, 10) for t in steps if low <= t * 10**e <= high]
        if len(ticks) >= _FEWEST_TICKS:
            break
    plain_ticks(axis, ticks, _thousands)


def metric_axis(axis: Axes, panel: Panel) -> None:
    """Logarithmic where the largest values would press the others together."""
    axis.set_ylabel(panel.metric.label)
    low, high = panel.values.min(), panel.values.max()
    if panel.metric.smaller_is_better and low > 0 and high / low > _MOST_LINEAR:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def powers_axis(axis: Axes, values: pd.Series) -> None:
    """A logarithmic scale to base 2 with these values as its ticks."""
    axis.set_xscale("log", base=2)
    plain_ticks(axis, sorted(values.unique()))


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers alone, on ``axes.xaxis`` or ``axes.yaxis``."""
    axis.set_major_locator(MaxNLocator(integer=True))


def plain_ticks(
    axis: Axes, ticks: Sequence[Any], name: Callable[[Any], str] = "{:g}".format
) -> None:
    """These ticks and no others, in plain numbers."""
    axis.set_xticks(ticks, [name(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _thousands(number: float | int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"
