"""Everything that a study's runs become: CSV, parquet, figures, tables and a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from qpa_exp.report.collect import Collected
from qpa_exp.report.figures import draw
from qpa_exp.report.page import png, render, svg, without_place
from qpa_exp.report.tables import Table, make_table, runs_table

PAGE = "report.html"


def write_report(collected: Collected, out: Path, command: str) -> Path:
    """Write ``<out>/<study>-<scales>/`` and return the path of its page.

    Args:
        collected: the runs of one study, at least one.
        out: the directory of all reports.
        command: what asked for the report, for the page.

    Raises:
        InputError: the study asks for a figure or a table that does not exist.
    """
    figures = dict(_figures(collected))
    vectors = {name: svg(figure) for name, figure in figures.items()}
    tables = list(_tables(collected))
    page = render(collected, vectors, tables, command)
    scales = [manifest.scale for manifest in collected.manifests if manifest.scale]
    directory = out / "-".join([collected.study, *dict.fromkeys(scales)])
    directory.mkdir(parents=True, exist_ok=True)
    _write_runs(collected.runs, directory)
    for name, figure in figures.items():
        (directory / f"{name}.png").write_bytes(png(figure))
        (directory / f"{name}.svg").write_bytes(vectors[name])
    for table in tables:
        table.rows.to_csv(directory / f"{table.name}_table.csv", index=False)
    (directory / PAGE).write_text(page, encoding="utf-8")
    return directory / PAGE


def _write_runs(runs: pd.DataFrame, directory: Path) -> None:
    runs = runs.assign(path=[without_place(str(path)) for path in runs["path"]])
    runs.to_csv(directory / "runs.csv", index=False)
    plain = runs.copy()
    for column in plain.columns[[kind.kind == "O" for kind in plain.dtypes]]:  # numbers and text
        plain[column] = plain[column].map(lambda value: None if value is None else str(value))
    # The schema of pandas, a second one, would be larger than the figures.
    plain.to_parquet(directory / "runs.parquet", index=False, store_schema=False)


def _specs(collected: Collected) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = []
    for manifest in collected.manifests:
        specs += [spec for spec in manifest.figures if spec not in specs]
    return specs or [{"kind": "categories"}]


def _figures(collected: Collected) -> Iterator[tuple[str, Figure]]:
    for spec in _specs(collected):
        yield str(spec.get("kind")), draw(collected.runs, spec)


def _tables(collected: Collected) -> Iterator[Table]:
    names = dict.fromkeys(name for m in collected.manifests for name in m.tables)
    for name in names:
        yield make_table(name, collected.runs)
    yield runs_table(collected.runs)
