"""``sweep.json``: what a study consists of, where its runs lie, and how it was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qpa_exp.errors import InputError
from qpa_exp.runs.states import read_json, write_json
from qpa_exp.sweeps.prepare import Job

MANIFEST = "sweep.json"
_OF_THE_STUDY = ("study", "title", "paper", "work", "figures", "tables", "notes", "differs")


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
    work: str
    figures: list[dict[str, Any]]
    tables: list[str]
    notes: list[str]
    differs: list[str]
    runs: list[dict[str, Any]] = field(default_factory=list)


def make_manifest(config: DictConfig, jobs: Sequence[Job]) -> tuple[Manifest, Path]:
    """The record of a named study, and the directory where it belongs."""
    study = OmegaConf.to_container(config.hydra.sweeper, resolve=True, enum_to_str=True)
    assert isinstance(study, dict)
    directory = Path(study["record"])
    runs = [
        {
            "path": os.path.relpath(job.run_dir, directory),
            "label": job.label,
            "overrides": list(job.overrides),
        }
        for job in jobs
    ]
    plain = {key: study[key] for key in _OF_THE_STUDY}
    scale = str(study["scale"].get("name", ""))
    return Manifest(**plain, scale=scale, command=command_of(config), runs=runs), directory


def command_of(config: DictConfig) -> str:
    """The command that started this sweep."""
    overrides = config.hydra.overrides
    hydra = [o for o in overrides.hydra if not o.startswith("hydra.mode=")]
    return shlex.join(["python", "-m", "qpa_exp", "-m", *overrides.task, *hydra])


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write ``sweep.json`` whole or not at all."""
    write_json(directory / MANIFEST, asdict(manifest))


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
        manifest = Manifest(**(saved or {}))
        sound = all(_is_run(run) for run in manifest.runs)
    except TypeError:
        sound = False
    if not sound:
        raise InputError(f"{path} is not the record of a study: start its sweep again to write it.")
    return manifest
