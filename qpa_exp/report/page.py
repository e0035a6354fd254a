"""A study's page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from qpa_exp.errors import InputError
from qpa_exp.files import whole_file
from qpa_exp.report.collect import Collected
from qpa_exp.report.comparisons import aggregate, comparisons, digits, ranked_by
from qpa_exp.report.drawing import DARK, any_letters
from qpa_exp.report.figures import draw
from qpa_exp.report.labels import named, plain
from qpa_exp.report.tables import TABLES, Table, differences, runs_table
from qpa_exp.sweeps.studies import Study, study_of_record

PAGE = "report.html"
_DPI = 300
"""Of a PNG, for print."""


def write_report(collected: Collected, out: Path, command: str) -> Path:
    """Write ``<out>/<study>-<scales>/`` and return the path of its page.

    No file of it names a place on this machine.

    Args:
        collected: the runs of one study, at least one.
        out: the directory of all reports.
        command: what asked for the report, for the page.

    Raises:
        InputError: the study asks for a figure or a table that does not exist.
    """
    runs = collected.runs.map(lambda cell: without_place(cell) if isinstance(cell, str) else cell)
    collected = replace(collected, runs=runs)
    figures = dict(figures_of(collected))
    vectors = {name: svg(figure) for name, figure in figures.items()}
    tables = list(tables_of(collected))
    page = render(collected, vectors, tables, command)
    scales = [manifest.scale for manifest in collected.manifests if manifest.scale]
    directory = out / "-".join([collected.study, *dict.fromkeys(scales)])
    try:
        _write_runs(collected.runs, directory)
        for name, figure in figures.items():
            _write(directory / f"{name}.png", png(figure))
            _write(directory / f"{name}.svg", vectors[name])
        for table in tables:
            _write(directory / f"{table.name}_table.csv", as_csv(table.rows))
        _write(directory / PAGE, page.encode())
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error.strerror}.") from error
    return directory / PAGE


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def as_csv(table: pd.DataFrame) -> bytes:
    """Return the table as CSV, in which no cell is a formula to a spreadsheet.

    Text that begins as a formula does has an apostrophe before it; a number stays one.
    """
    plain = table.rename(columns=_defused).map(_defused)
    return plain.to_csv(index=False, lineterminator="\n").encode()


def _defused(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r", "\n")  # which would begin a row, and is not always quoted
    if not cell.startswith(("=", "+", "-", "@", "\t")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _write_runs(runs: pd.DataFrame, directory: Path) -> None:
    _write(directory / "runs.csv", as_csv(runs))
    plain = runs.copy()
    for column in plain.columns[[kind.kind == "O" for kind in plain.dtypes]]:  # numbers and text
        plain[column] = plain[column].map(lambda value: None if value is None else str(value))
    # The schema of pandas, a second one, would be larger than the figures.
    with whole_file(directory / "runs.parquet") as file:
        plain.to_parquet(file, index=False, store_schema=False)


def words_of(collected: Collected) -> Study:
    """Return the study as its file stands today, under the title of the record.

    What it is about is said where the runs are of one scale.
    """
    manifests = collected.manifests
    if not manifests:
        return Study(title=_title_of(collected.runs))
    first, scales = manifests[0], {manifest.scale for manifest in manifests}
    today = study_of_record(first.study, first.scale) or Study()
    about = today.about if len(scales) == 1 else ""
    return replace(today, title=first.title or "Runs", paper=first.paper, about=about)


def _title_of(runs: pd.DataFrame) -> str:
    """Return what runs of no study have shown: one setting's result, else how many there are."""
    table = aggregate(runs)
    metric, first = ranked_by(table), table.iloc[0]
    base = first.get(f"base_{metric.name}")
    if len(table) > 1 or base is None or base != base:
        return f"{len(table)} settings"
    before, after = digits(base), digits(first[metric.name])
    return f"{metric.name.capitalize()} {before} before, {after} after training"


def figures_of(collected: Collected, title: str | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the study asks for, by kind; a second one of a kind has a number.

    Args:
        collected: the runs of one study.
        title: of every figure; None = the study's.
    """
    specs: list[dict[str, Any]] = []
    for manifest in collected.manifests:
        specs += [spec for spec in manifest.figures if spec not in specs]
    words, used = words_of(collected), Counter[str]()
    for spec in specs or [{"kind": "categories"}]:
        kind = str(spec.get("kind"))
        used[kind] += 1
        name = kind if used[kind] == 1 else f"{kind}{used[kind]}"
        yield name, draw(
            collected.runs, spec, title=words.title if title is None else title,
            about=words.about, groups=words.groups,
        )  # fmt: skip


def tables_of(collected: Collected) -> Iterator[Table]:
    """Yield the tables that the study asks for, and that of all its runs."""
    groups = words_of(collected).groups
    runs = collected.runs.assign(name=named(collected.runs, groups).map(plain))
    for name in dict.fromkeys(name for m in collected.manifests for name in m.tables):
        yield TABLES[name](name, runs)
    yield runs_table(collected.runs, groups)


def render(
    collected: Collected, figures: Mapping[str, bytes], tables: Sequence[Table], report: str
) -> str:
    """Return the page as text.

    Args:
        collected: the study's runs.
        figures: SVG files by name.
        tables: in the order in which they stand.
        report: the command that wrote the page.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=False,
    )  # fmt: skip
    manifests, runs, words = collected.manifests, collected.runs, words_of(collected)
    return environment.get_template("page.html").render(
        study=collected.study if manifests else "",
        words=words,
        scales=[manifest.scale for manifest in manifests],
        sentences=[comparison.sentence() for comparison in comparisons(runs)],
        figures={name: base64.b64encode(file).decode() for name, file in figures.items()},
        tables=tables,
        heading_of=heading_of,
        is_number=re.compile(r"[-+\d.,e± ]+").fullmatch,
        notes=list(dict.fromkeys(line for m in manifests for line in m.notes)),
        differs=[*dict.fromkeys(line for m in manifests for line in m.differs), *differences(runs)],
        skipped=[without_place(f"{item.path}: {item.why}") for item in collected.skipped],
        commands=[without_place(c) for c in (*(m.command for m in manifests), report)],
        run_commands=[command for command in runs["command"] if command],
        versions=list(versions_of(runs)),
    )


_PLACE = re.compile(r"(?<![\w.~])(?<!:/)(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")


def without_place(text: str) -> str:
    """Return a text that names no machine: paths below the working directory as relative ones, any
    other absolute path cut to its last part.

    Examples:
        >>> without_place("data.path=/home/me/wikitext-2 of https://example.org/a/b")
        'data.path=wikitext-2 of https://example.org/a/b'
    """
    return _PLACE.sub("", text.replace(f"{Path.cwd()}{os.sep}", ""))


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes for the same figure; on a dark page it is dark."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "qpa_exp", "svg.fonttype": "path"}), any_letters():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    return buffer.getvalue().replace(b" <metadata>", f" {style}\n <metadata>".encode(), 1)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG at 300 dpi, for print; a palette of few colours makes it small."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    with any_letters():
        figure.savefig(drawn, format="rgba", dpi=_DPI)
    width = int(figure.get_figwidth() * _DPI)
    pixels = drawn.getvalue()  # which Pillow would refuse to read back from a large file
    image = Image.frombytes("RGBA", (width, len(pixels) // (4 * width)), pixels)
    image.convert("RGB").quantize().save(buffer, "png", optimize=True, dpi=(_DPI, _DPI))
    return buffer.getvalue()


def heading_of(table: Table) -> str:
    """Return what stands above a table."""
    own = {"runs": "All runs", "controls": "Does the circuit matter?"}
    return own.get(table.name, f"Beside {table.name} of the paper")


def versions_of(runs: pd.DataFrame) -> Iterator[str]:
    """Yield what the numbers come from.

    Where runs were made under different versions, so it is said.
    """
    if "versions" in runs:
        different = runs["versions"].dropna().unique()
        for text in different:
            yield ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
        if len(different) > 1:
            yield "These runs were made under different versions: compare them with care."
    if "data_sha256" in runs:
        for (name, digest), _ in runs.groupby(["data.name", "data_sha256"]):
            yield f"text of {name}: sha256 {digest}"
