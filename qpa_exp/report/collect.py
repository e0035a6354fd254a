"""Runs from disk as one table. What is on disk is data: it is read, never run.

A place is a run's directory, a study's (it holds ``sweep.json``, which lists its runs), or any
directory above those, or one with links to them; deeper links are not followed, for they may lead
in a circle. What cannot be used is left out, and said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import fits, typed_path
from qpa_exp.generator.rules import VARIANTS, fit
from qpa_exp.registry import dotted, spelled
from qpa_exp.runs.directory import (
    CONFIG,
    METRICS,
    WRITTEN,
    State,
    error_of,
    read_config,
    read_metrics,
    state_of,
    validation_key,
    validation_of_kept,
)
from qpa_exp.sweeps.studies import MANIFEST, Manifest, read_manifest
from qpa_exp.sweeps.without_effect import is_without_effect
from qpa_exp.task import TASKS, Metric

NO_STUDY = "runs"
"""The name under which runs that belong to no study are reported."""

_CONTENT = ("data.path", "model.name")
"""Keys that only name what a run reads: good in a name, and no part of a setting."""


def tells_settings_apart(key: str) -> bool:
    """Return whether a config key has an effect on the numbers, and is no seed."""
    return key not in ("seed", "qpa.seed", "data.cache") and not is_without_effect(key)


@dataclass(frozen=True)
class Skipped:
    """A directory that is left out, and why, as the end of a sentence.

    Attributes:
        pending: whether it is a run of a study that is not complete yet.
    """

    path: Path
    why: str
    pending: bool = False


def left_out(skipped: Sequence[Skipped]) -> list[str]:
    """Return a sentence for each; one for all runs of a study that are not complete yet."""
    pending = sum(item.pending for item in skipped)
    words = [item.why for item in skipped if not item.pending]
    if pending:
        many = f"{pending} planned run is" if pending == 1 else f"{pending} planned runs are"
        words.append(f"{many} not complete yet.")
    return words


@dataclass(frozen=True)
class Collected:
    """The runs of one study.

    Attributes:
        runs: one row a run: the config's keys, dotted; the figures of ``metrics.json``;
            ``validation_<metric>`` of the kept weights, for the metric that ranks runs; ``path``,
            ``study``, ``scale``, ``label``, ``command``, and ``setting``, a hash that is equal for
            runs which differ in nothing but seeds and keys without effect. A setting has one run
            of each seed.
        manifests: the records of the study, one for each scale.
    """

    study: str
    runs: pd.DataFrame
    skipped: list[Skipped]
    manifests: list[Manifest]


def collect(places: Iterable[str], study: str | None = None) -> list[Collected]:
    """Every study among the runs of these places, or ``study`` alone.

    Args:
        places: directories, or patterns for them.
        study: leave the runs of others out.

    Raises:
        InputError: a place does not exist, or no study of that name is there.
    """
    found: dict[str, tuple[list[dict[str, Any]], list[Skipped], list[Manifest]]] = {}
    for directory in _directories(places):
        for manifest, runs in _groups(directory):
            name = manifest.study if manifest else NO_STUDY
            rows, skipped, manifests = found.setdefault(name, ([], [], []))
            if manifest:
                manifests.append(manifest)
            for run in runs:
                try:
                    rows.append(_row(run, manifest))
                except InputError as error:
                    path: Path = run["path"]
                    waits = state_of(path) in (State.new, State.interrupted)
                    pending = manifest is not None and waits and not (path / METRICS).exists()
                    skipped.append(Skipped(path, str(error), pending))
                except OSError as error:
                    why = f"{str(run['path'])[:200]} cannot be read: {error.strerror}."
                    skipped.append(Skipped(run["path"], why))
    if study is not None:
        if study not in found:
            there = ", ".join(sorted(found)) or "nothing"
            raise InputError(f"study={study} is not among these runs: there is {there}.")
        found = {study: found[study]}
    return [_collected(name, *parts) for name, parts in found.items()]


def _collected(
    name: str, rows: list[dict[str, Any]], skipped: list[Skipped], manifests: list[Manifest]
) -> Collected:
    table = pd.DataFrame(rows)
    if rows:
        table = table.drop_duplicates("path")
        first = table.groupby(["setting", "seed", "qpa.seed"])["path"].transform("first")
        again = table["path"] != first
        skipped += [
            Skipped(Path(path), f"{path} has the setting and the seed of {kept}, which counts.")
            for path, kept in zip(table["path"][again], first[again], strict=True)
        ]
        table = table[~again].reset_index(drop=True)
        if name == NO_STUDY:
            table["label"] = _what_varies(table)
    return Collected(name, table, skipped, manifests)


def _what_varies(runs: pd.DataFrame) -> pd.Series:
    """Name runs that no study has named by the keys in which they differ: ``qpa.n_mlp=64``.

    A key whose values follow from those of keys before it is left out, as is the seed. Runs that
    are all alike keep their own names.
    """
    keys = [
        key for key, _ in dotted(Config())
        if key in runs and (tells_settings_apart(key) or key in _CONTENT)
    ]  # fmt: skip
    options = sorted(key for key in map(str, runs) if key.startswith("peft.options."))
    told_apart, chosen = pd.Series("", index=runs.index), list[str]()
    for key in [*keys, *options]:
        with_it = told_apart + "\0" + runs[key].map(str)
        if with_it.nunique() > told_apart.nunique():
            told_apart, chosen = with_it, [*chosen, key]
    if not chosen:
        return runs["label"]
    values = runs[chosen].convert_dtypes().astype(object)  # whole numbers, beside nulls, too
    plain = values.where(values.notna(), None)
    words = [f"{key}=" + plain[key].map(spelled) for key in chosen]
    return pd.concat(words, axis=1).agg(" ".join, axis=1).str[:_LONGEST]


def _directories(places: Iterable[str]) -> list[Path]:
    directories: dict[Path, None] = {}
    for place in places:
        try:
            path = typed_path(place)
            # pathlib's own pattern of any depth follows no links, which may lead in a circle.
            pattern = str(path.relative_to(path.anchor))
            found = [path] if path.is_dir() else sorted(Path(path.anchor).glob(pattern))
            inside = [match for match in found if match.is_dir()]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"runs={place[:200]} cannot be read: {why}.") from error
        if not inside:
            raise InputError(
                f"runs={place[:200]} matches no directory: give one, or a pattern of them."
            )
        directories |= dict.fromkeys(inside)
    return list(directories)


def _groups(directory: Path) -> Iterator[tuple[Manifest | None, list[dict[str, Any]]]]:
    """Yield the studies below a directory with their runs, then the runs that are of no study.

    What lies in a run's directory is its own: W&B keeps a ``config.yaml`` there.
    """
    listed: set[Path] = set()
    places = [directory, *_linked(directory)]
    for file in sorted(file for place in places for file in place.rglob(MANIFEST)):
        manifest = read_manifest(file.parent)
        runs = [
            {**run, "path": Path(os.path.realpath(file.parent / run["path"]))}
            for run in manifest.runs
        ]
        listed |= {run["path"] for run in runs}
        yield manifest, runs
    files = (f for place in places for name in (CONFIG, METRICS) for f in place.rglob(name))
    found = {file.parent.resolve() for file in files}
    inside = {run / name for run in found | listed for name in WRITTEN}
    others = sorted(p for p in found - listed if inside.isdisjoint((p, *p.parents)))
    if others:
        yield None, [{"path": path, "label": path.name} for path in others]
    elif not listed:
        yield None, [{"path": directory, "label": directory.name}]


def _linked(directory: Path) -> list[Path]:
    """Return the links in a directory that lead to a run, or to the record of a study."""
    with suppress(OSError):
        links = [path for path in directory.iterdir() if path.is_symlink()]
        own = (CONFIG, METRICS, MANIFEST)
        return sorted(link for link in links if any((link / name).is_file() for name in own))
    return []


def _row(run: Mapping[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    """One run's row.

    Raises:
        InputError: why the run cannot be used.
    """
    path: Path = run["path"]
    config = read_config(path)
    task = TASKS[config.task]
    flat = flatten(dataclasses.asdict(config))
    ranked_by = task.ranked_by().name
    metrics = _metrics(path, task.metrics, ranked_by)
    kept = {key: value for key, value in flat.items() if tells_settings_apart(key)}
    kept["data"] = metrics.get("data_sha256") or flat["data.path"]
    setting = json.dumps(kept, sort_keys=True, default=str)
    command = shlex.join(["python", "-m", "qpa_exp", *run["overrides"]]) if manifest else ""
    row = {
        **metrics,
        **flat,
        validation_key(ranked_by): validation_of_kept(path, ranked_by),
        "path": str(path),
        "study": manifest.study if manifest else NO_STUDY,
        "scale": manifest.scale if manifest else "",
        "label": (run["label"] or path.name)[:_LONGEST],
        "command": command,
        "setting": hashlib.sha256(setting.encode(errors="replace")).hexdigest()[:12],
    }
    row["model.name"] = row["model.name"][:_LONGEST]
    row["qpa.n_mlp"] = row["qpa.n_mlp"] or row.get("n_mlp")  # where the rule of tuned gave it
    m = row.get("generated_params", math.nan)
    if row["qpa.window"] is None and VARIANTS[config.qpa.variant].generates and m == m:
        row["qpa.window"] = fit(int(m), config.qpa)[1].window
    return {key: _text(value) if isinstance(value, str) else value for key, value in row.items()}


def _text(value: str) -> str:
    """Text that can be written: no half characters, and none that control a terminal."""
    known = value.encode(errors="replace").decode()
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "?", known)


def _metrics(path: Path, known: Sequence[Metric], ranked_by: str) -> dict[str, Any]:
    """Return a run's figures, each a number, NaN where it is none; and a few texts."""
    state = state_of(path)
    if state is State.interrupted and (path / METRICS).exists():
        raise InputError(f"{path / METRICS} is not one of ours or is damaged.")
    if state is State.interrupted:
        raise InputError(f"{path} is not complete: it is running, or was interrupted.")
    if state is not State.complete:
        raise InputError(f"{path} {state}: {error_of(path)}")
    metrics = read_metrics(path) or {}
    needed = [metrics.get(key) for key in (ranked_by, *_NEEDED)]
    own = [metric.name for metric in known if metric.restates is None]
    bases = [metrics.get(f"base_{name}") for name in own if metrics.get(name) is not None]
    if not all(map(_is_number, [*needed, *bases])) or not all(metrics[key] > 0 for key in _SIZES):
        raise InputError(f"{path / METRICS} holds no result of this program.")
    row: dict[str, Any] = unmeasured(known)
    for key, value in metrics.items():
        if not re.fullmatch(r"[a-z]\w{0,99}", key) or key == "n" or key.endswith("_std"):
            continue  # no name of ours, or one of a column that is made of these
        if key in _TEXTS:
            row[key] = value if isinstance(value, str) else None
        elif key in _TABLES:
            row[key] = json.dumps(value) if fits(value, _TABLES[key]) else None
        else:
            row[key] = value if _is_number(value) else math.nan
    return row


def unmeasured(metrics: Iterable[Metric]) -> dict[str, float]:
    """Return the figures that every row has, each NaN."""
    names = [metric.name for metric in metrics]
    return dict.fromkeys((*names, *(f"base_{name}" for name in names), *_DRAWN), math.nan)


_SIZES = ("trainable_params", "target_params")
_NEEDED = (*_SIZES, "seed")
_DRAWN = ("n_qubits", "train_seconds", "step_seconds_median")
_TEXTS = ("status", "error", "data_sha256", "model_revision")
_TABLES = {"versions": dict[str, str], "time_split": dict[str, float], "class_names": list[str]}
_LARGEST = 1e30
_LONGEST = 300
"""Letters of a name, so that it can stand in a figure."""


def _is_number(value: Any) -> bool:
    """Whether it is one that can be drawn; JSON as Python reads it has NaN, too, and any size."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -_LARGEST < value < _LARGEST


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if prefix + key not in ("model.recipe", "model.architecture"):
                flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat[prefix + key] = json.dumps(value)
        else:
            flat[prefix + key] = value
    return flat
