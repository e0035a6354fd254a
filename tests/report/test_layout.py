"""Nothing in a figure lies over anything else, whatever the runs are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox

from qpa_exp.report.collect import collect
from qpa_exp.report.drawing import DARK, spread
from qpa_exp.report.figures import KINDS, draw
from qpa_exp.report.page import svg

DOCS = Path(__file__).resolve().parents[2] / "docs"
WORD = st.text("abW m$_^\\", min_size=1, max_size=70)


@pytest.fixture(scope="module")
def rows(
    make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, object]]:
    """A run of LoRA, of QPA and of its controls, as they are collected."""
    place = tmp_path_factory.mktemp("runs")
    made = {"lora": ["qpa=off"], "unilora": ["qpa=off", "peft=unilora"], "qpa": [],
            "paper": ["qpa=paper"], "frozen": ["qpa.ansatz=frozen"]}  # fmt: skip
    for name, overrides in made.items():
        make_run(place / name, *overrides, validation=150.0)
    (collected,) = collect([str(place)])
    return {Path(row["path"]).name: row for row in collected.runs.to_dict("records")}


@st.composite
def tables(draw_from: st.DrawFn, rows: dict[str, dict[str, object]]) -> pd.DataFrame:
    """Runs of up to nine settings, some of them with several seeds, one of them may go wrong."""
    made = []
    for number in range(draw_from(st.integers(1, 9))):
        row = dict(rows[draw_from(st.sampled_from(sorted(rows)))])
        row |= {
            "setting": str(number), "label": draw_from(st.just(f"peft.r={number}") | WORD),
            "trainable_params": draw_from(st.integers(1, 10**9)),
            "peft.r": draw_from(st.integers(1, 64)),
            "qpa.n_layers": draw_from(st.integers(1, 64)),
            "optim.lr": draw_from(st.sampled_from([1e-5, 1e-3, 0.003, 0.01, 0.03])),
            "n_qubits": draw_from(st.integers(1, 20)),
            "train_tokens": draw_from(st.integers(100, 10**6)),
            "gradient_variance": draw_from(st.floats(1e-20, 1.0)),
            "expectation_variance": draw_from(st.floats(1e-20, 1.0)),
        }  # fmt: skip
        around = draw_from(st.floats(1.0, 400.0) | st.just(1e9))
        for seed in range(draw_from(st.integers(1, 3))):
            value = around * (1 + 0.01 * seed)
            made.append(row | {"seed": seed, "perplexity": value, "validation_perplexity": value})
    return pd.DataFrame(made)


def faults(figure: Figure) -> list[str]:
    """Texts that leave the canvas, and pairs that lie over each other by more than a pixel."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = []
    for text in figure.findobj(Text):
        if (
            text.get_visible() and text.get_text().strip() and text.axes is not None
        ) or text in figure.texts:
            box = text.get_window_extent(renderer)
            boxes.append((text.get_text(), box))
    return overlaps(boxes, figure.bbox.width, figure.bbox.height)


def overlaps(boxes: list[tuple[str, Bbox]], width: float, height: float) -> list[str]:
    found = [
        f"{text!r} leaves the canvas: {box}"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        over_x = min(a.x1, b.x1) - max(a.x0, b.x0)
        over_y = min(a.y1, b.y1) - max(a.y0, b.y0)
        if over_x > 1 and over_y > 1:
            found.append(f"{one!r} lies over {two!r}")
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_text_overlaps_another_or_leaves_the_figure(
    rows: dict[str, dict[str, object]], kind: str
) -> None:
    options = {"key": "peft.r", "log": True} if kind == "over" else {}

    @settings(max_examples=EXAMPLES)
    @given(tables(rows), WORD, WORD)
    def check(table: pd.DataFrame, title: str, about: str) -> None:
        if kind == "qubits":
            table = pd.concat([table, pd.DataFrame([rows["qpa"] | {"n_qubits": 3}])])
        groups = {"a group": {"qpa.variant": "paper"}}
        figure = draw(table, {"kind": kind, **options}, title=title, about=about, groups=groups)
        assert faults(figure) == []

    check()


EXAMPLES = 3
SVG = "{http://www.w3.org/2000/svg}"


def drawn_text(text: ElementTree.Element) -> tuple[str, Bbox]:
    """What a <text> says, and its box in DejaVu Sans, which is wider than most fonts."""
    said = "".join(text.itertext())
    font = FontProperties(weight=text.get("font-weight", "normal"))
    path = TextPath((0, 0), said, size=float(text.get("font-size", 13)), prop=font)
    wide = path.get_extents().width
    x, y = float(text.get("x", 0)), float(text.get("y", 0))
    left = x - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "start")]
    return said, Bbox.from_extents(left, y - 10, left + wide, y + 3)


@pytest.mark.parametrize("name", ["generator.svg", "qpa.svg"])
def test_no_text_of_a_drawn_picture_overlaps_another_or_leaves_its_box(name: str) -> None:
    """Of what is shown in turn, a group of a class ``s0`` to ``s7``, one at a time is looked at."""
    root = ElementTree.parse(DOCS / name).getroot()
    turns = [group for group in root.iter(f"{SVG}g") if group.get("class", "").startswith("s")]
    in_turn = {text for group in turns for text in group.iter(f"{SVG}text")}
    always = [drawn_text(text) for text in root.iter(f"{SVG}text") if text not in in_turn]
    for group in turns or [None]:
        now = [] if group is None else [drawn_text(text) for text in group.iter(f"{SVG}text")]
        size = float(root.get("width", 0)), float(root.get("height", 0))
        assert overlaps([*always, *now], *size) == []
    frames = [[float(rect.get(k, 0)) for k in ("x", "y", "width", "height")]
              for rect in root.iter(f"{SVG}rect") if rect.get("rx") == "6"]  # fmt: skip
    for said, box in always:
        for x, y, wide, high in frames:
            if x < (box.x0 + box.x1) / 2 < x + wide and y < (box.y0 + box.y1) / 2 < y + high:
                assert max(x + 2 - box.x0, box.x1 - x - wide + 2) < 0, said


def test_a_figure_has_only_colours_that_a_dark_page_knows(
    rows: dict[str, dict[str, object]],
) -> None:
    table = pd.DataFrame([rows["lora"], rows["qpa"], rows["frozen"], rows["paper"]])
    for kind in ("parameters", "pareto", "categories", "learning_rates"):
        text = svg(draw(table, {"kind": kind})).decode()
        style, _, drawn = text.partition("</style>")
        assert "prefers-color-scheme" in style
        used = {part[:7] for part in drawn.split("#")[1:]}
        colours = {f"#{part[:6]}" for part in used if part[:6].isalnum() and part[6:] in ';"'}
        assert colours <= {*DARK}


@given(st.lists(st.floats(-1, 2), max_size=9))
def test_places_are_apart_and_in_the_order_that_was_wanted(wanted: list[float]) -> None:
    placed = spread(wanted, gap=0.1, low=0.0, high=1.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) > 0.1 - 1e-9).all()
    assert ((placed >= -1e-9) & (placed <= 1 + 1e-9)).all()
