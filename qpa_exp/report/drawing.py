"""How every figure looks: its size, its colours, its axes, and names beside what they name.

A figure is as wide as a column of a README, 800 px, and its text can be read there. A colour means
the same thing everywhere; none of them is told from another by red and green alone, and every
series has a marker of its own. Names stand beside the points; where there is no room for one, it
goes to a legend below. No two texts overlap, and none leaves the figure.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox, Transform
from scipy.optimize import isotonic_regression

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.errors import InputError
from qpa_exp.report.comparisons import digits, measured
from qpa_exp.task import TASKS, Metric

INK, MUTED, GRID, GROUND = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
QPA, CLASSICAL, RIVAL, CONTROL = "#0072b2", "#c14e00", "#007f5f", "#6e7781"
"""A trained circuit; the method that it generates, trained itself; other methods; what stands in
the circuit's place."""
SERIES = (QPA, "#8250df", "#0e8a93", "#bf3989", "#4c9be0", "#2f4b8f")
"""Several series of QPA in one panel."""
DARK = {
    INK: "#e6edf3", MUTED: "#9198a1", GRID: "#30363d", GROUND: "#0d1117",
    QPA: "#58a6ff", CLASSICAL: "#f0883e", RIVAL: "#3fb98a", CONTROL: "#8d96a0",
    "#8250df": "#b392f0", "#0e8a93": "#39c5cf", "#bf3989": "#f778ba", "#4c9be0": "#9ecbff",
    "#2f4b8f": "#8ea4f0",
}  # fmt: skip
"""Every colour of a figure, and what a dark page shows in its place."""
MARKERS = "sD^vP*X<>pHd8"
STYLE: Any = {
    "font.size": 9.5, "axes.labelsize": 9.5, "axes.titlesize": 9.5, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "figure.titlesize": 12.5,
    "figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": MUTED,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "figure.facecolor": GROUND, "savefig.facecolor": GROUND, "axes.facecolor": "none",
    "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True, "figure.dpi": 100,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "legend.frameon": False, "svg.fonttype": "path", "lines.markersize": 5.5,
    "lines.linewidth": 1.4, "axes.formatter.useoffset": False, "axes.ymargin": 0.12,
    "axes.xmargin": 0.06,
}  # fmt: skip
WIDTH = 8.0
"""Inches; 800 px on a page."""
EDGE = 1.5
"""A setting whose figure is beyond that many times the unadapted model's went wrong."""

SMALL = 8.5
"""The size of what may be left out."""
_FEWEST_TICKS = 3
_MOST_LINEAR = 5.0
_LEAST_SHARE = 0.3
"""The unadapted model's figure is drawn to scale where the others keep that much of the axis."""
_LONGEST = 60


@contextmanager
def any_letters() -> Iterator[None]:
    """Draw a letter that the font lacks as a box, and say nothing of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


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
    def base(self) -> float:
        """The unadapted model's; NaN where it was not measured."""
        column = f"base_{self.metric.name}"
        return float(self.table[column].mean()) if column in self.table else float("nan")

    @property
    def edge(self) -> float:
        """The value beyond which a setting went wrong; infinite where larger is better."""
        if not self.metric.smaller_is_better:
            return float("inf")
        best = float(self.values.min())
        return EDGE * (best if np.isnan(self.base) else max(best, self.base))

    @property
    def beyond(self) -> float:
        """Where a setting stands that went wrong: a little above all others."""
        shown = self.values[self.values <= self.edge]
        high = shown.max() if np.isnan(self.base) else max(shown.max(), self.base)
        return float(high + 0.1 * (high - shown.min() or high))


def panels(
    table: pd.DataFrame, *, by_method: bool = True, metric: str | None = None, about: str = ""
) -> Iterator[Panel]:
    """One panel for each task, model, text, method and metric.

    Args:
        table: rows of settings.
        by_method: whether each method has a panel of its own.
        metric: this one alone, which may be one that restates another; None = every other one.
        about: the model and the text, where all of them have the same.

    Raises:
        InputError: no setting has that metric.
    """
    shown = measured(table, restated=metric is not None)
    shown = [m for m in shown if metric in (None, m.name)]
    if metric is not None and not shown:
        known = {m.name for task in set(table["task"]) for m in TASKS[task].metrics}
        why = "no run has measured it" if metric in known else f"give one of {', '.join(known)}"
        raise InputError(f"metric={metric[:100]} cannot be drawn: {why}.")
    keys = ["task", "model.name", "data.name", *(["peft.method"] if by_method else [])]
    places = table[keys[1:3]].drop_duplicates()
    several = by_method and table["peft.method"].nunique() > 1
    for values, part in table.groupby(keys, sort=False):
        _, model, data, *method = values
        title = about if about and len(places) == 1 else f"{model} on {data}"
        if several:
            title = f"{METHODS[str(method[0])].label}: {title}"
        for m in shown:
            if part[m.name].notna().any():
                yield Panel(with_seeds(title, part), part[part[m.name].notna()], m)


def with_seeds(title: str, table: pd.DataFrame) -> str:
    """Return a panel's title, and what its points and bars are."""
    low, high = int(table["n"].min()), int(table["n"].max())
    if high == 1:
        return f"{title}; one seed"
    seeds = f"{low} to {high}" if low < high else f"{high}"
    return f"{title}; mean ± s.d. of {seeds} seeds"


# --- the figure and the names in it -------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    axis: Axes
    text: str
    points: Sequence[tuple[Any, Any]]
    colour: str
    transform: Transform
    handle: Any
    """What a legend shows of it; None for a name that may be left out."""
    size: float


@dataclass
class Canvas:
    """A figure with its panels, and the names that :meth:`finish` finds places for."""

    figure: Figure
    axes: list[Axes]
    _names: list[_Name] = field(default_factory=list)
    _ends: list[tuple[Text, Sequence[tuple[Any, Any]]]] = field(default_factory=list)
    _leaders: list[Any] = field(default_factory=list)
    _wrapped: list[tuple[Text, str]] = field(default_factory=list)

    def name(
        self, axis: Axes, text: str, points: Sequence[tuple[Any, Any]], colour: str,
        handle: Any = None, transform: Transform | None = None, size: float = 9.0,
    ) -> None:  # fmt: skip
        """Have a text beside one of the points, the last ones first.

        Args:
            axis: where.
            text: cut after 60 letters.
            points: what it names.
            colour: of the text.
            handle: for the legend, where there is no room for it; without one it is left out then.
            transform: of the points; None = the axes' data.
            size: in points.
        """
        name = _Name(
            axis, shortened(text), points, colour, transform or axis.transData, handle, size
        )
        self._names.append(name)

    def curve(
        self, axis: Axes, points: pd.DataFrame, x: str, y: str, label: str, **style: Any
    ) -> list[tuple[Any, Any]]:
        """Draw a series as :func:`curve` does, have its name beside it, and return its points."""
        bars = curve(axis, points, x, y, label=label, **style)
        places = list(zip(points[x], points[y], strict=True))
        self.name(axis, label, [at for at in places if at[1] == at[1]], style["color"], bars)
        return places

    def name_end(
        self, axis: Axes, text: str, points: Sequence[tuple[Any, Any]], colour: str
    ) -> None:
        """Have a text in the margin at the right of the last of a curve's points that is seen."""
        beside = axis.text(1.03, 0.5, shortened(text, 44), color=colour, va="center")
        beside.set_transform(axis.transAxes)
        self._ends.append((beside, points))

    def title(self, axis: Axes, text: str) -> None:
        """Write a panel's title, broken into lines that fit."""
        self._wrapped.append((axis.set_title(text), text))

    def finish(self, title: str = "") -> Figure:
        """Break titles, lay the panels out, thin ticks, and find a place for every name."""
        figure = self.figure
        renderer = FigureCanvasAgg(figure).get_renderer()
        if title:
            above = figure.suptitle(title, x=0.012, ha="left", wrap=False)
            _break(above, title, 0.97 * figure.bbox.width, renderer)
        figure.draw_without_rendering()
        for text, words in self._wrapped:
            room = figure.bbox.width - text.get_window_extent(renderer).x0 - 8
            columns = {round(axis.get_position().x0, 2) for axis in self.axes}
            _break(text, words, min(room, 0.94 * figure.bbox.width / len(columns)), renderer)
        listed: list[_Name] = []
        made: list[Artist] = []
        for _ in range(3):
            figure.draw_without_rendering()
            for artist in made:
                artist.remove()
            for axis in self.axes:
                _thin(axis.xaxis, renderer, 0)
                _thin(axis.yaxis, renderer, 1)
            self._spread_ends(renderer)
            waiting = [name for name in self._names if name not in listed]
            made, missed = _place(figure, waiting, renderer)
            missed = [name for name in missed if name.handle is not None]
            if not missed:
                break
            listed += missed
            _legends(listed)
        else:
            figure.draw_without_rendering()
            for artist in made:
                artist.remove()
            _legends([name for name in self._names if name.handle is not None])
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure

    def _spread_ends(self, renderer: Any) -> None:
        for leader in self._leaders:
            leader.remove()
        self._leaders.clear()
        for axis in self.axes:
            ends = [(text, points) for text, points in self._ends if text.axes is axis]
            if not ends:
                continue
            box = axis.get_window_extent(renderer)
            heights = np.array([t.get_window_extent(renderer).height for t, _ in ends])
            at = np.array([_last_seen(axis, points) for _, points in ends])
            gap = (float(heights.max()) + 1) / box.height
            places = spread(np.clip(at[:, 1], 0, 1), gap, 0, 1)
            for (text, _), (x, y), place in zip(ends, at, places, strict=True):
                text.set_position((1.03, place))
                leader = Line2D(
                    [x, 1.01, 1.025], [np.clip(y, 0, 1), place, place], color=text.get_color(),
                    linewidth=0.6, transform=axis.transAxes, clip_on=False, zorder=1,
                )  # fmt: skip
                leader.set_in_layout(False)
                self._leaders.append(axis.add_artist(leader))


def _last_seen(axis: Axes, points: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """Return the last of the points that is within the panel, else the last, in the axes'
    fractions.
    """
    pixels = axis.transData.transform(np.array(points, dtype=float))
    places: np.ndarray = axis.transAxes.inverted().transform(pixels)
    seen = places[(places[:, 1] >= 0) & (places[:, 1] <= 1)]
    last: np.ndarray = (seen if len(seen) else places)[-1]
    return last


def canvas(count: int, height: float, *, columns: int = 2) -> Canvas:
    """Return a figure of the usual width with so many panels, side by side in ``columns``.

    Args:
        count: of panels.
        height: of a row of them, in inches.
        columns: at most.
    """
    columns = max(1, min(count, columns))
    rows = -(-max(count, 1) // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.45), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return Canvas(figure, axes[:count])


def of_panels(drawn: Sequence[Panel], height: float = 3.7, *, columns: int = 2) -> Canvas:
    """Return a figure with one titled panel for each."""
    made = canvas(len(drawn), height, columns=columns)
    for axis, panel in zip(made.axes, drawn, strict=True):
        made.title(axis, panel.title)
    return made


def shortened(text: str, letters: int = _LONGEST) -> str:
    """Return a text of so many letters at most."""
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip()}…"


def _break(text: Text, words: str, width: float, renderer: Any, most: int = 4) -> None:
    """Set a text in lines that are no wider than that many pixels."""
    text.set_text(words)
    whole = text.get_window_extent(renderer).width
    letters = len(words) if whole <= width else max(4, int(len(words) * width / whole))
    while letters > 3:
        lines = wrap(words, letters, break_on_hyphens=False) or [""]
        if len(lines) > most:
            lines = [*lines[: most - 1], shortened(lines[most - 1], letters - 1) + "…"]
        text.set_text("\n".join(lines))
        if text.get_window_extent(renderer).width <= width:
            return
        letters -= 1


def _thin(axis: Any, renderer: Any, along: int) -> None:
    """Hide labels of ticks that would lie over the one before them."""
    last = -np.inf
    labels = [label for label in axis.get_ticklabels() if label.get_text()]
    boxes = [(label.get_window_extent(renderer), label) for label in labels]
    for box, label in sorted(boxes, key=lambda pair: pair[0].get_points()[0][along]):
        low, high = box.get_points()[:, along]
        label.set_visible(low > last + 1)
        last = high if label.get_visible() else last


def spread(wanted: Sequence[float] | np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places close to those that are wanted, at least ``gap`` apart, from ``low`` to ``high``.

    Where they do not fit they go beyond both ends.

    Examples:
        >>> spread([5.0, 5.0, 9.0], gap=1.0, low=0.0, high=10.0).tolist()
        [4.5, 5.5, 9.0]
    """
    result = np.array(wanted, dtype=float)
    if len(result):
        order = np.argsort(result, kind="stable")
        steps = gap * np.arange(len(result))
        free = isotonic_regression(result[order] - steps).x
        last = high - steps[-1]
        middle = (low + last) / 2
        result[order] = np.clip(free, min(low, middle), max(last, middle)) + steps
    return result


_BESIDE = [
    (dx, dy, reach)
    for reach in (7, 12, 20, 30, 44)
    for dx, dy in ((1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (-1, 0))
]


def _place(
    figure: Figure, names: Sequence[_Name], renderer: Any
) -> tuple[list[Artist], list[_Name]]:
    """Put texts beside their points, over no other text; give the names that found no place.

    A line leads from a text to its point where that is not close.
    """
    seen = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    texts = np.array([t.get_window_extent(renderer).get_points() for t in seen]).reshape(-1, 2, 2)
    marks = {axis: _marks(axis) for axis in {name.axis for name in names}}
    made: list[Artist] = []
    missed = []
    for name in sorted(names, key=lambda name: name.handle is None):
        probe = name.axis.text(0, 0, name.text, fontsize=name.size)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        wide, high = extent.width, extent.height
        inside = name.axis.get_window_extent(renderer)
        points = name.transform.transform(np.array(name.points, dtype=float))
        best: tuple[float, Bbox, Any] | None = None
        for late, (x, y) in enumerate(points[::-1]):
            if not (inside.x0 - 2 <= x <= inside.x1 + 2 and inside.y0 - 2 <= y <= inside.y1 + 2):
                continue
            for dx, dy, reach in _BESIDE:
                part = reach if dx == 0 or dy == 0 else 0.72 * reach
                left = x + dx * part - (0 if dx > 0 else wide if dx < 0 else wide / 2)
                low = y + dy * part - (0 if dy > 0 else high if dy < 0 else high / 2)
                box = Bbox.from_bounds(left, low, wide, high)
                if left < inside.x0 + 2 or left + wide > inside.x1 or low < inside.y0 + 1:
                    continue
                near = box.padded(2)
                taken = ((texts[:, 0] < near.max) & (texts[:, 1] > near.min)).all(axis=1)
                if low + high > inside.y1 + 2 or taken.any():
                    continue
                over = box.padded(3).count_contains(marks[name.axis])
                cost = 4.0 * over + 0.25 * reach + 0.5 * min(late, 6)
                if best is None or cost < best[0]:
                    best = cost, box, (x, y)
        if best is None or best[0] > _DEAREST:
            missed.append(name)
            continue
        box, point = best[1], np.array(best[2])
        end = np.clip(point, *box.get_points())
        if np.hypot(*(point - end)) > _FAR:
            ends = name.axis.transAxes.inverted().transform([point, end])
            leader = Line2D(
                *ends.T, color=name.colour, linewidth=0.6, transform=name.axis.transAxes, zorder=1
            )
            leader.set_in_layout(False)
            made.append(name.axis.add_artist(leader))
        x, y = name.axis.transAxes.inverted().transform((box.x0, box.y0 + high / 2))
        text = name.axis.text(
            x, y, name.text, transform=name.axis.transAxes, fontsize=name.size, color=name.colour,
            va="center", ha="left", zorder=6, bbox=BEHIND,
        )  # fmt: skip
        text.set_in_layout(False)
        made.append(text)
        texts = np.concatenate([texts, [text.get_window_extent(renderer).get_points()]])
    return made, missed


BEHIND = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
_FAR = 10
"""Pixels from which a line leads to a name's point."""
_DEAREST = 44.0
"""A name that would lie over much else goes to the legend."""


def _marks(axis: Axes) -> np.ndarray:
    """Where something is drawn, in pixels: every mark several times, and lines every few pixels."""
    found = [np.zeros((0, 2))]
    for line in axis.lines:
        points = line.get_transform().transform(np.column_stack(line.get_data(orig=False)))
        points = points[np.isfinite(points).all(axis=1)]
        if line.get_marker() not in ("None", None, "", " "):
            found.append(np.repeat(points, 2, axis=0))
        if line.get_linestyle() not in ("None", "none", "", " "):
            found += [_along(a, b) for a, b in itertools.pairwise(points)]
    for collection in axis.collections:
        for path in collection.get_paths():
            points = collection.get_transform().transform(path.vertices)
            found += [_along(a, b) for a, b in itertools.pairwise(points)]
    return np.vstack(found)


def _along(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    steps = int(min(max(np.hypot(*(b - a)) // 7, 1), 400))
    return a + (b - a) * np.linspace(0, 1, steps + 1)[:, None]


def _legends(names: Sequence[_Name]) -> None:
    """Write what found no place beside its points below its panel."""
    for axis in dict.fromkeys(name.axis for name in names):
        own = [name for name in names if name.axis is axis]
        wide = axis.get_window_extent().width
        longest = max(len(shortened(name.text, 40)) for name in own)
        columns = int(max(1, min(len(own), wide // (7.2 * longest + 44))))
        below = 0.36 + 0.18 * bool(axis.get_xlabel())
        high = axis.get_window_extent().height / axis.figure.dpi
        shown = axis.legend(
            [name.handle for name in own], [shortened(name.text, 40) for name in own],
            loc="upper left", bbox_to_anchor=(-0.02, -below / max(high, 0.5)), ncols=columns,
            borderaxespad=0, handletextpad=0.5, columnspacing=1.2,
        )  # fmt: skip
        for text, name in zip(shown.get_texts(), own, strict=True):
            text.set_color(name.colour)


# --- series -----------------------------------------------------------------------------------


def curve(axis: Axes, points: pd.DataFrame, x: str, y: str, *, label: str, **style: Any) -> Any:
    """One series from left to right, with bars of the standard deviation where there are seeds."""
    points = points.sort_values(x)
    spread = points[f"{y}_std"].fillna(0.0) if f"{y}_std" in points else pd.Series(dtype=float)
    if spread.any():
        style |= {"yerr": spread, "capsize": 2.5, "elinewidth": 1.1}
    return axis.errorbar(points[x], points[y], label=label, **style)


def several() -> Iterator[dict[str, Any]]:
    """Styles of many series: every pair of a colour and a marker once, then dashed, then dotted."""
    for line in itertools.cycle(("-", "--", ":")):
        for shift in range(len(MARKERS)):
            for place, colour in enumerate(SERIES):
                marker = MARKERS[(place + shift) % len(MARKERS)]
                yield {"color": colour, "marker": marker, "linestyle": line}


def star(axis: Axes, at: tuple[Any, Any], size: int, colour: str, label: str = "") -> None:
    """Mark the best of a series."""
    axis.plot(
        *at, marker="*", markersize=size, linestyle="none", color=colour,
        markeredgecolor=INK, markeredgewidth=0.7, zorder=5, label=label or "_star",
    )  # fmt: skip


def went_wrong(axis: Axes, place: tuple[Any, Any], marker: str, colour: str, value: float) -> str:
    """Put a setting that went wrong at the edge, so that the others are seen; give its value."""
    axis.plot(*place, marker=marker, color=colour, clip_on=False, linestyle="none")
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def baseline(drawn: Canvas, axis: Axes, panel: Panel, *, across: bool = False) -> None:
    """Draw the unadapted model's figure as a dotted line.

    Far from all others, words at the edge.
    """
    base, values = panel.base, panel.values[panel.values <= panel.edge]
    if not np.isfinite(base) or values.empty:
        return
    name = f"unchanged model {digits(base)}"
    limits = axis.get_xlim() if across else axis.get_ylim()
    scale = axis.get_xscale() if across else axis.get_yscale()
    measure: Callable[[Any], Any] = np.log if scale == "log" and base > 0 else lambda x: x
    low, high, at = (float(measure(x)) for x in (values.min(), values.max(), base))
    room = max(high, at) - min(low, at)
    style: dict[str, Any] = {"color": MUTED, "linestyle": ":"}
    seen = min(limits) <= base <= max(limits)
    if seen or high == low or (high - low) / room >= _LEAST_SHARE:
        turned = axis.get_xaxis_transform() if across else axis.get_yaxis_transform()
        line = axis.axvline if across else axis.axhline
        end, least, handle = base, 0.03, line(base, label=name, linewidth=1.3, zorder=1, **style)
    else:
        turned, end, least = axis.transAxes, 0.985 if at > high else 0.015, 0.05
        name += " " + ("←→" if across else "↓↑")[at > high]
        (handle,) = axis.plot([], [], **style)
    points = [(end, p) if across else (p, end) for p in np.linspace(least, 1 - least, 9)]
    drawn.name(axis, name, points, MUTED, handle, turned)


# --- axes -------------------------------------------------------------------------------------


def parameters_axis(axis: Axes) -> None:
    """Trainable parameters, on a logarithmic scale with round numbers."""
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters")
    low, high = axis.get_xlim()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [t * 10**e for e in range(13) for t in steps if low <= t * 10**e <= high]
        if len(ticks) >= _FEWEST_TICKS:
            break
    plain_ticks(axis, ticks, EngFormatter(sep=""))


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
    """Make a logarithmic scale to base 2 with these values as its ticks."""
    axis.set_xscale("log", base=2)
    plain_ticks(axis, sorted(values.unique()))


def plain_ticks(
    axis: Axes, ticks: Sequence[Any], name: Callable[[Any], str] = "{:g}".format
) -> None:
    """Set these ticks and no others, in plain numbers."""
    axis.set_xticks(ticks, [name(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
