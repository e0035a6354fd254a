"""A study's page in ``docs/results``: its finding, its figure, its table, and its runs as data.

Reports are large, and are written somewhere else. What a page shows is small, and stands beside the
source: ``<study>-<scale>.md``, its figures as SVG, and in ``data/`` every run's config and figures,
out of which the page can be drawn again without any of the runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import pandas as pd

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import MIB, plain_name, read_plain, typed, whole_file, write_text
from qpa_exp.registry import spelled
from qpa_exp.report.collect import Collected, flatten, left_out, unmeasured
from qpa_exp.report.comparisons import comparisons
from qpa_exp.report.labels import same
from qpa_exp.report.page import (
    figures_of,
    heading_of,
    svg,
    tables_of,
    versions_of,
    without_place,
    words_of,
)  # fmt: skip
from qpa_exp.report.tables import Table, differences
from qpa_exp.runs.directory import validation_key
from qpa_exp.sweeps.studies import Manifest, Study, study_of_record
from qpa_exp.task import TASKS

DATA = "data"
INDEX = "README.md"
_BEGIN, _END = "<!-- studies: written by python -m qpa_exp.report -->", "<!-- end of studies -->"
_OF_A_PLACE = ("path", "command", "study", "scale")
_HIDDEN = ("method", "% of target")


@dataclass
class Saved(Manifest):
    """A study at one scale as its file in ``data/`` holds it.

    Attributes:
        shared: what all runs have alike, by column.
        columns: the names of the others.
        runs: one row a run, in the order of ``columns``.
    """

    shared: dict[str, Any]
    columns: list[str]
    runs: list[list[Any]]  # type: ignore[assignment]


def write_pages(collected: Collected, docs: Path) -> list[Path]:
    """Keep a study's runs in ``docs/data`` and write its page, one for each scale.

    Args:
        collected: the study's runs, at least one.
        docs: the directory of pages.

    Returns:
        The pages; none for runs that belong to no study.

    Raises:
        InputError: a figure that cannot be drawn, or a place that cannot be written.
    """
    pages = []
    for manifest in collected.manifests:
        runs = collected.runs[collected.runs["scale"] == manifest.scale].reset_index(drop=True)
        if not runs.empty:
            missing = [f"Left out: {without_place(why)}" for why in left_out(collected.skipped)]
            command = without_place(_NOT_SHOWN.sub("", manifest.command))
            manifest = dataclasses.replace(
                manifest, notes=[*manifest.notes, *missing], command=command
            )
            one = dataclasses.replace(collected, runs=runs, manifests=[manifest])
            saved = _saved(manifest, runs)
            page = _write(one, docs)
            _write_json(docs / DATA / f"{page.stem}.json", saved)
            pages.append(page)
    _write_index(docs)
    return pages


def redraw(docs: Path) -> list[Path]:
    """Write every page of ``docs`` again, from the runs in its ``data/``.

    Titles, figures and tables are those of the study's file as it stands today.

    Raises:
        InputError: there is no such file, or one of them is something else.
    """
    files = sorted((docs / DATA).glob("*.json"))
    if not files:
        raise InputError(f"pages={docs}: there are no runs in {docs / DATA} to draw pages from.")
    pages = [_write(read_saved(file), docs) for file in files]
    _write_index(docs)
    return pages


def _write(collected: Collected, docs: Path) -> Path:
    (manifest,) = collected.manifests
    name = f"{plain_name(manifest.study, 'the study')}-{plain_name(manifest.scale, 'its scale')}"
    words = words_of(collected)
    finding = words.finding.get(manifest.scale, "")
    title = _first_sentence(finding).rstrip(".") or words.title
    drawn = dict(figures_of(collected, title))
    files = {kind: name if len(drawn) == 1 else f"{name}-{kind}" for kind in drawn}
    page = docs / f"{name}.md"
    try:
        for kind, figure in drawn.items():
            with whole_file(docs / f"{files[kind]}.svg") as file:
                file.write(svg(figure))
        write_text(page, "\n".join(_lines(collected, list(files.values()))) + "\n")
    except OSError as error:
        raise InputError(f"{docs} cannot be written: {error.strerror}.") from error
    return page


def _lines(collected: Collected, figures: list[str]) -> Iterator[str]:
    (manifest,), runs, words = collected.manifests, collected.runs, words_of(collected)
    finding = words.finding.get(manifest.scale, "").strip()
    found = [comparison.sentence() for comparison in comparisons(runs)]
    yield f"# {words.title}\n"
    yield f"{finding or ' '.join(found[:1]) or 'What it shows is in the figure.'}\n"
    for figure in figures:
        yield f"![{words.title}: {words.about or manifest.scale}]({figure}.svg)\n"
    about = f"{words.about[:1].upper()}{words.about[1:]}. " if words.about else ""
    paper = f" In the paper: {words.paper}." if words.paper else ""
    yield f"{about}Study `{manifest.study}` at `scale={manifest.scale}`.{paper}\n"
    with_time = any(spec.get("kind") == "time" for spec in manifest.figures)
    for table in tables_of(collected):
        yield f"## {heading_of(table)}\n\n{table.caption}\n"
        yield from _table(table, with_time=with_time or table.name != "runs")
        yield ""
    if (finding and found) or found[1:]:
        yield "## QPA beside the method that it generates\n"
        yield from (f"- {sentence}" for sentence in found)
        yield ""
    lacking = list(_not_run(manifest, runs))
    if manifest.notes or lacking:
        yield "## Notes\n"
        yield from (f"- {line}" for line in manifest.notes)
        if lacking:
            yield f"- The study's file has more settings, without runs here: {', '.join(lacking)}."
        yield ""
    yield "## How the setting differs from the paper's\n"
    yield from (f"- {line}" for line in [*manifest.differs, *differences(runs)])
    yield "\n## How it was made\n\n```bash"
    yield " \\\n".join(_SHELL.wrap(manifest.command))
    yield "```\n"
    yield from (f"- {line}" for line in versions_of(runs))
    yield f"- every run as data: [{_data_of(manifest)}]({DATA}/{_data_of(manifest)})"


def _not_run(manifest: Manifest, runs: pd.DataFrame) -> Iterator[str]:
    """Yield the settings that the study's file has today and that none of these runs is of."""
    study = study_of_record(manifest.study, manifest.scale) or Study(parts=[])
    for part in study.parts:
        keys = [key for key in part if key != "seed"]
        choices = [part[key] if isinstance(part[key], list) else [part[key]] for key in keys]
        for values in itertools.product(*choices):
            given = {k: v for k, v in zip(keys, values, strict=True) if v is not None}
            of_it = pd.Series(True, index=runs.index)
            for key, value in given.items():
                column = _GROUPS.get(key, key)
                if column in runs:
                    of_it &= runs[column].map(partial(same, wanted=value))
            if not of_it.any():
                yield f"`{' '.join(f'{key}={spelled(value)}' for key, value in given.items())}`"


_GROUPS = {"peft": "peft.method", "qpa": "qpa.variant", "data": "data.name", "model": "model.name"}
"""The key that each group's name stands in."""


def _data_of(manifest: Manifest) -> str:
    return f"{manifest.study}-{manifest.scale}.json"


def _table(table: Table, *, with_time: bool) -> Iterator[str]:
    rows = table.rows.astype(str)
    if table.name == "runs":
        constant = [c for c in rows if len(rows) > 1 and rows[c].nunique() == 1 and c != "runs"]
        hidden = [*_HIDDEN, *constant, *([] if with_time else ["seconds"])]
        rows = rows.drop(columns=[column for column in hidden if column in rows])
    if "overrides" in rows:
        rows["overrides"] = [f"`{text}`" if text else "" for text in rows["overrides"]]
    plain = [[_cell(text) for text in row] for row in rows.to_numpy().tolist()]
    columns = zip(*plain, strict=True)
    numbers = [all(re.fullmatch(r"[-+\d.,e± %]*", text) for text in column) for column in columns]
    yield "| " + " | ".join(_cell(str(name)) for name in rows.columns) + " |"
    yield "| " + " | ".join("---:" if number else "---" for number in numbers) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in plain)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


_SHELL = TextWrapper(96, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\d])", text.strip())[0]


def _write_index(docs: Path) -> None:
    """Write the list of pages, between its marks in the directory's README, where it has them."""
    index = docs / INDEX
    if not index.is_file():
        return
    text = index.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        return
    lines = ["| study | scale | what was found |", "| --- | --- | --- |"]
    for file in sorted((docs / DATA).glob("*.json"), key=_by_number):
        collected = read_saved(file)
        (manifest,), words = collected.manifests, words_of(collected)
        said = _first_sentence(words.finding.get(manifest.scale, "")) or f"{words.title}."
        about = words.about or manifest.scale
        lines.append(f"| [{manifest.study}]({file.stem}.md) | {about} | {_cell(said)} |")
    head, _, rest = text.partition(_BEGIN)
    write_text(
        index, f"{head}{_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{_END}{rest.partition(_END)[2]}"
    )


def _by_number(file: Path) -> list[str]:
    """``fig2`` before ``fig10``."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", file.stem)]


# --- the runs as data -------------------------------------------------------------------------


def _saved(manifest: Manifest, runs: pd.DataFrame) -> Saved:
    known = {item.name for item in dataclasses.fields(Saved)}
    said = {key: value for key, value in vars(manifest).items() if key in known and key != "runs"}
    runs = runs.drop(columns=[column for column in _OF_A_PLACE if column in runs])
    rows = [[_plain(value) for value in row] for row in runs.itertuples(index=False, name=None)]
    columns = [str(column) for column in runs.columns]
    alike = [i for i in range(len(columns)) if all(row[i] == rows[0][i] for row in rows)]
    shared = {columns[i]: rows[0][i] for i in alike if rows[0][i] is not None}
    kept = [i for i in range(len(columns)) if i not in alike]
    return Saved(
        **said, shared=shared, columns=[columns[i] for i in kept],
        runs=[[row[i] for i in kept] for row in rows],
    )  # fmt: skip


_NOT_SHOWN = re.compile(r" (?:hydra\.sweep\.dir|hydra\.sweeper\.\w+|trainer\.progress_bar)=\S+")
"""Words of a command that say where it ran, and nothing of what."""


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return without_place(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_json(path: Path, saved: Saved) -> None:
    said = {key: value for key, value in vars(saved).items() if key != "runs"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in said.items()]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in saved.runs)
    write_text(path, "\n".join(["{", *lines, ' "runs": [', rows, " ]", "}"]) + "\n")


def _nothing() -> dict[str, Any]:
    """Return the columns of a run that has nothing: what none of a study has is not in its file."""
    metrics = [metric for task in TASKS.values() for metric in task.metrics]
    validation = dict.fromkeys((validation_key(metric.name) for metric in metrics), math.nan)
    return dict.fromkeys(flatten(dataclasses.asdict(Config()))) | unmeasured(metrics) | validation


def read_saved(path: Path) -> Collected:
    """Return the study of a file in ``data/``, its title, figures and tables as its file says them
    today.

    Raises:
        InputError: it is no such file, or damaged.
    """
    try:
        saved = typed(Saved, read_plain(path, 64 * MIB, references=True))
        plain_name(saved.study, "its study")
        plain_name(saved.scale, "its scale")
        if any(len(row) != len(saved.columns) for row in saved.runs) or not saved.runs:
            raise ValueError("a run has more or fewer figures than there are columns")
        runs = pd.DataFrame(saved.runs, columns=saved.columns)
    except ValueError as error:
        raise InputError(
            f"{path} holds no study's runs ({error}): write its page again."
        ) from error
    more = saved.shared | {"study": saved.study, "scale": saved.scale, "command": ""}
    more = {key: value for key, value in _nothing().items() if key not in runs} | more
    runs = pd.concat([runs, pd.DataFrame(more, index=runs.index)], axis=1)
    runs["path"] = [f"{path.stem}/{number}" for number in range(len(runs))]
    said = {key: value for key, value in vars(saved).items() if key not in ("shared", "columns")}
    manifest = Manifest(**{**said, "runs": []})
    if today := study_of_record(saved.study, saved.scale):
        manifest = dataclasses.replace(
            manifest, title=today.title, paper=today.paper, figures=today.figures,
            tables=today.tables,
        )  # fmt: skip
    return Collected(saved.study, runs, [], [manifest])
