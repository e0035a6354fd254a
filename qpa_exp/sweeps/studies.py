"""The files of ``sweeps/``: studies, each with its own points for every scale, and the scales.

A study is its ``parts``, each a product: a mapping from a config key or group to one value or a
list of them. The parts run one after another; ``fixed`` and the command line hold for all. Under
``points`` it has a block for each scale at which it exists, and ``${points.ranks}`` is the value
of the chosen scale's block; ``as: tiny`` takes over another block. A file of ``sweeps/scale/`` says
what all studies share there, and ``${scale.seeds}`` refers to it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import MIB, fits, plain_name, read_plain, typed, write_json
from qpa_exp.files.plain_yaml import read_yaml

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
    """Return the command that starts this study alone."""
    given = [*master.hydra.overrides.task, *master.hydra.overrides.hydra]
    left_out = ("sweep=", "hydra.mode=", "hydra.sweeper.keep_going=")
    chosen = [f"sweep={study}"] if any(word.startswith("sweep=") for word in given) else []
    rest = [word for word in given if not word.startswith(left_out)]
    return shlex.join(["python", "-m", "qpa_exp", "-m", *chosen, *rest])


@dataclass
class _Run:
    """The keys of a run in a manifest, and their types."""

    path: str
    label: str
    overrides: list[str]


def read_manifest(directory: Path) -> Manifest:
    """Return the record of the study in this directory; what it names is never a place to write to.

    Raises:
        InputError: ``sweep.json`` is damaged or something else.
    """
    path = directory / MANIFEST
    try:
        # Its words are shown, never composed.
        saved = read_plain(path, 64 * MIB, references=True)
        known = {item.name for item in fields(Manifest)}
        if isinstance(saved, dict):
            saved = {key: value for key, value in saved.items() if key in known}
        manifest = typed(Manifest, saved)
        _check_names(manifest)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ").rstrip(".")
        raise InputError(
            f"{path} is not the record of a study ({why}): start its sweep again to write it."
        ) from error
    return manifest


def _check_names(manifest: Manifest) -> None:
    """Refuse a record whose names could be more than names."""
    plain_name(manifest.study, "its study")
    if manifest.scale:  # a sweep from the command line alone has none
        plain_name(manifest.scale, "its scale")
    for name in [figure.get("kind") for figure in manifest.figures] + manifest.tables:
        plain_name(name, "a figure or a table")
    for run in manifest.runs:
        if Path(typed(_Run, run).path).is_absolute():
            raise ValueError(f"a run's path is {run['path'][:100]}, which is not relative")


@dataclass
class SearchConfig:
    """A search by Optuna in place of a product; what is None here the study's file says."""

    n_trials: int | None = None
    batch_size: int | None = None
    """Trials that are chosen before any of them has ended; the launcher may run them at once."""
    seed: int | None = None


@dataclass
class SweeperConfig:
    """``hydra.sweeper``: which study runs, and where it is recorded."""

    _target_: str = "hydra_plugins.qpa_exp_sweeper.StudySweeper"
    study: str | None = None
    """A study of ``sweeps/``, or the name of a sweep from the command line alone."""
    scale: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)
    records: str = "outputs/studies"
    """Named studies keep the lists of their runs there, in ``<scale>/<study>``."""
    side_by_side: int | None = None
    """So many runs at once, each in a process of its own; null = as ``hydra/launcher`` does."""
    only_plan: bool = False
    """Say what would run and what it would cost, then stop."""
    keep_going: bool = False
    """Whether the other studies run where one cannot be planned."""


@dataclass
class Search:
    """A search by Optuna: what is minimised together, over which space.

    Attributes:
        space: for each config key the values to choose from.
    """

    n_trials: int
    space: dict[str, list[Any]]
    batch_size: int = 1
    seed: int = 0


@dataclass
class Study:
    """What runs, and how it is reported, at one scale.

    Attributes:
        study: its name, that of its file; None for a sweep from the command line alone.
        paper: what the paper shows there; empty for a study of our own.
        notes: what a reader should know, in sentences.
        differs: how the setting differs from the paper's, in sentences.
        groups: settings that stand together in figures and tables, by the group's name: the config
            keys and values that they share.
        finding: by scale, what its runs in docs/results show: a sentence for the figure's title,
            and one or two more for the page.
        about: the scale's model and text, for people.
    """

    study: str | None = None
    scale: str = ""
    title: str = ""
    paper: str = ""
    parts: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    fixed: dict[str, Any] = field(default_factory=dict)
    search: Search | None = None
    figures: list[dict[str, Any]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    finding: dict[str, str] = field(default_factory=dict)
    about: str = ""

    @property
    def title_line(self) -> str:
        """Write the title for the terminal."""
        return f"Sweep {self.study}, scale {self.scale}" if self.study else "Sweep"


def sweeps_dir() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "studies"
    return installed if installed.is_dir() else package.parent / "sweeps"


STUDIES: dict[str, Path] = {}
"""The file of every study."""
SCALES: dict[str, Path] = {}
"""The file of every scale."""


def register_studies(directory: Path) -> None:
    """Make the studies of a directory known, and the scales of its folder ``scale``.

    Hydra learns their names alone; the group is called ``sweep`` and the folder ``sweeps``, so that
    it cannot find the files by path.
    """
    STUDIES.update({file.stem: file for file in sorted(directory.glob("*.yaml"))})
    SCALES.update({file.stem: file for file in sorted((directory / "scale").glob("*.yaml"))})
    _store("hydra/sweeper", "study", SweeperConfig, package=None)
    for name in STUDIES:
        _store("sweep", name, {"study": name})
    for name in SCALES:
        _store("scale", name, {"scale": name})
    _store("scale", "none", {})  # for hydra/sweeper=basic, which has no studies


def _store(group: str, name: str, node: Any, package: str | None = "hydra.sweeper") -> None:
    ConfigStore.instance().store(
        group=group, name=name, node=node, package=package, provider="qpa_exp"
    )


def study_names() -> list[str]:
    """Every study, in alphabetical order."""
    return sorted(STUDIES)


def scale_names() -> list[str]:
    """Every scale, in alphabetical order."""
    return sorted(SCALES)


def points_of(study: str) -> dict[str, dict[str, Any]]:
    """Return the block of every scale at which this study exists, what it takes over included.

    ``paper: true`` in a block says that the paper has the study there.

    Raises:
        InputError: the study's file cannot be used.
    """
    path = STUDIES[study]
    points = _load(path).get("points", {})
    if not fits(points, dict[str, dict[str, Any]]):
        raise InputError(f"{path}: points={points!s:.100} must be a table with one for each scale.")
    return {scale: _taken_over(points, scale, path) for scale in points}


def _taken_over(
    points: dict[str, dict[str, Any]], scale: str, path: Path, depth: int = 0
) -> dict[str, Any]:
    if scale not in points or depth > len(points):
        raise InputError(f"{path}: as={scale!s:.100} must name a scale that it has points for.")
    block = dict(points[scale])
    if "as" in block:
        other = _taken_over(points, str(block.pop("as")), path, depth + 1)
        block = {**other, "paper": False, **block}
    return block


def runs_side_by_side(scale: str) -> bool:
    """Whether several of its runs at once are faster: those of other scales keep a GPU busy."""
    return _scale(scale).runs_side_by_side


@dataclass
class _Scale:
    """A file of ``sweeps/scale/``; ``as`` takes over another."""

    about: str = ""
    seeds: list[int] = field(default_factory=list)
    fixed: dict[str, Any] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    runs_side_by_side: bool = False


def _scale(name: str, depth: int = 0) -> _Scale:
    if name not in SCALES or depth > len(SCALES):
        raise InputError(f"scale={name:.100} is unknown: give one of {', '.join(scale_names())}.")
    own = dict(_load(SCALES[name]))
    other = _scale(str(own.pop("as")), depth + 1) if "as" in own else _Scale()
    try:
        scale = typed(_Scale, vars(other) | own)
    except ValueError as error:
        raise InputError(f"{SCALES[name]}: {error}.") from error
    return replace(scale, fixed=other.fixed | scale.fixed)


_REFERENCE = re.compile(r"\$\{(points|scale)(\.\w+|\[\d+\])+\}")


@functools.cache
def _load(path: Path) -> dict[str, Any]:
    found = read_yaml(path, references=True)
    _, refers, rest = _REFERENCE.sub("", json.dumps(found)).partition("${")
    if refers:
        raise InputError(
            f"{path} refers to ${{{rest.split('}')[0][:60]}}}: it may refer to "
            "${points. ...} and ${scale. ...} alone."
        )
    return found


def read_study(name: str, scale: str) -> Study:
    """Return the study of this name at this scale, every reference resolved.

    Raises:
        InputError: no such study, no such scale, the study has no points there, or a file of these
            cannot be used.
    """
    if name not in STUDIES:
        raise InputError(f"sweep={name} is unknown: give one of {', '.join(study_names())}.")
    points = points_of(name)
    if scale not in points:
        raise InputError(
            f"sweep={name} has no points at scale={scale}: it has them at {', '.join(points)}."
        )
    place, spec = _scale(scale), _load(STUDIES[name]) | {"points": points[scale]}
    try:
        plain = _resolved({**spec, "scale": vars(place)})
        fixed = {**plain.pop("scale")["fixed"], **plain.get("fixed", {})}
        del plain["points"]
        given = {**plain, "fixed": fixed, "differs": place.differs, "about": place.about}
        study = typed(Study, {**given, "scale": scale})
    except (ValueError, TypeError, RecursionError, OmegaConfBaseException) as error:
        raise InputError(f"{STUDIES[name]} at scale={scale}: {first_line(error)}") from error
    return study


def _resolved(spec: dict[str, Any]) -> Any:
    return OmegaConf.to_container(OmegaConf.create(spec), resolve=True)


def study_of_record(name: str, scale: str) -> Study | None:
    """Return the study of a record as its file says it today.

    None where it has no such file or scale.
    """
    if not STUDIES:
        register_studies(sweeps_dir())
    known = name in STUDIES and scale in SCALES and scale in points_of(name)
    return read_study(name, scale) if known else None


def own_sweep(name: str | None, scale: str, *, at_scale: bool) -> Study:
    """Return a sweep from the command line alone.

    Args:
        name: what its runs are grouped under.
        scale: where its record lies.
        at_scale: whether what the scale fixes holds for it.

    Raises:
        InputError: the name is none, or the scale is unknown.
    """
    if name is not None:
        plain_name(name, "the name of the sweep")
    if not at_scale:
        return Study(name, scale)
    plain = _resolved({"scale": vars(_scale(scale))})["scale"]
    return Study(name, scale, fixed=plain["fixed"], differs=plain["differs"])


def name_scales(arguments: list[str]) -> list[str]:
    """``sweep=fig2_gpt2``, short for a study at a scale, written out: ``sweep=fig2 scale=gpt2``."""
    both = {
        f"sweep={study}_{scale}": [f"sweep={study}", f"scale={scale}"]
        for study in study_names()
        for scale in scale_names()
    }
    return [word for argument in arguments for word in both.get(argument, [argument])]


def say(line: str) -> None:
    """Print to the terminal, at once."""
    print(line, flush=True)
