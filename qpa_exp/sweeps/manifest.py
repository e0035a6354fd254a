"""``sweep.json``: what a study consists of, where its runs lie, and how it was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from qpa_exp.errors import InputError
from qpa_exp.files.reading import read_json
from qpa_exp.files.writing import write_json
from qpa_exp.sweeps.runner import say
from qpa_exp.sweeps.studies import Study

if TYPE_CHECKING:
    from qpa_exp.sweeps.prepare import Job

MANIFEST = "sweep.json"


@dataclass
class Manifest:
    """A study as it was started last.

    Attributes:
        command: the shell command that starts it.
        runs: for each run ``path`` (relative to the manifest's directory), ``label`` and
            ``overrides``.
    """

    study: str
    title: str
    paper: str
    scale: str
    command: str
    figures: list[dict[str, Any]]
    tables: list[str]
    notes: list[str]
    differs: list[str]
    runs: list[dict[str, Any]]


def record_directory(records: str | Path, study: str, scale: str) -> Path:
    """Where a study at a scale keeps the list of its runs."""
    return Path(records) / scale / study


def record_study(master: DictConfig, study: Study, jobs: Sequence[Job]) -> None:
    """Keep the list of a named study's runs, for its report: written whole or not at all."""
    if study.study is None:
        return
    directory = record_directory(master.hydra.sweeper.records, study.study, study.scale)
    runs = [
        {
            "path": os.path.relpath(job.run_dir, directory),
            "label": job.label,
            "overrides": list(job.overrides),
        }
        for job in jobs
    ]
    values = vars(study) | {"command": _command(master, study.study), "runs": runs}
    record = {item.name: values[item.name] for item in fields(Manifest)}
    write_json(directory / MANIFEST, record)
    say(f"The study's record: {directory}")


def _command(master: DictConfig, study: str) -> str:
    """The command that starts this study alone."""
    given = [*master.hydra.overrides.task, *master.hydra.overrides.hydra]
    left_out = ("sweep=", "hydra.mode=", "hydra.sweeper.keep_going=")
    chosen = [f"sweep={study}"] if any(word.startswith("sweep=") for word in given) else []
    rest = [word for word in given if not word.startswith(left_out)]
    return shlex.join(["python", "-m", "qpa_exp", "-m", *chosen, *rest])


def _is_run(run: Any) -> bool:
    return (
        isinstance(run, dict)
        and isinstance(run.get("path"), str)
        and isinstance(run.get("label"), str)
        and isinstance(run.get("overrides"), list)
    )


def read_manifest(directory: Path) -> Manifest:
    """The record of the study in this directory.

    Raises:
        InputError: ``sweep.json`` is damaged or something else.
    """
    path = directory / MANIFEST
    saved = read_json(path)
    try:
        known = {item.name for item in fields(Manifest)}
        manifest = Manifest(**{k: v for k, v in (saved or {}).items() if k in known})
        sound = all(_is_run(run) for run in manifest.runs)
    except TypeError:
        sound = False
    if not sound:
        raise InputError(f"{path} is not the record of a study: start its sweep again to write it.")
    return manifest
