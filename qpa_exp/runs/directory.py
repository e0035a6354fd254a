"""A run's directory: the one place that knows which files lie in it. What is on disk is data.

| file | what it holds |
| --- | --- |
| ``config.yaml`` | the run's config, every reference resolved |
| ``checkpoints/*.ckpt`` | the newest state of training |
| ``csv/version_*/metrics.csv`` | what was logged, a part for each time that it was continued |
| ``generator/`` or ``adapter/`` | what was trained |
| ``metrics.json`` | the results; there when the run has ended |
| ``failed.json`` | in a sweep: why the run failed |
| ``cache.json`` | whether hidden states are kept |
| ``curves.png`` | losses against steps |
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qpa_exp.config import Config
from qpa_exp.errors import InputError, one_line, sentence_end
from qpa_exp.files import MIB, read_bytes, read_json, write_json, write_text
from qpa_exp.files.plain_yaml import read_yaml
from qpa_exp.runs.check_config import check

CONFIG, METRICS, FAILED, CACHE = "config.yaml", "metrics.json", "failed.json", "cache.json"
CHECKPOINTS, CURVES = "checkpoints", "curves.png"
GENERATOR, ADAPTER = "generator", "adapter"

Metrics = dict[str, Any]


# --- how far a run has come -------------------------------------------------------------------


class State(StrEnum):
    """Of a run, from what its directory holds."""

    new = "new"
    interrupted = "interrupted"
    failed = "failed"
    diverged = "diverged"
    complete = "complete"

    @property
    def is_final(self) -> bool:
        """Whether running it again would only repeat what is known."""
        return self in (State.complete, State.diverged)


def state_of(run_dir: Path) -> State:
    """How far the run in this directory has come."""
    metrics = read_json(run_dir / METRICS)
    if metrics is not None:
        status = metrics.get("status")
        return State(status) if status in ("complete", "diverged") else State.interrupted
    if (run_dir / FAILED).exists():
        return State.failed
    return State.interrupted if (run_dir / CONFIG).exists() else State.new


def error_of(run_dir: Path) -> str | None:
    """Why a run failed or diverged, in a sentence; None where it did neither."""
    for name in (METRICS, FAILED):
        record = read_json(run_dir / name)
        if record is not None and "error" in record:
            return str(record["error"])
    return None


def record_failure(run_dir: Path, error: Exception) -> None:
    """Keep why the run failed: a sentence for the user, the traceback for a bug report."""
    sentence = str(error)
    if not isinstance(error, InputError):
        sentence = f"{type(error).__name__}: {one_line(error)[:300]}"
    trace = "".join(traceback.format_exception(error))
    write_json(run_dir / FAILED, {"error": sentence, "traceback": trace})


# --- its config -------------------------------------------------------------------------------


def claim(run_dir: Path, config: Config) -> None:
    """Make a new run's directory and write its config.

    Raises:
        InputError: the directory holds a run already.
    """
    if (run_dir / CONFIG).exists() or (run_dir / METRICS).exists():
        raise InputError(
            f"{run_dir} holds a run already: continue it with resume={run_dir}, "
            "or choose another directory with hydra.run.dir=<directory>."
        )
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(run_dir: Path) -> Config:
    """The config of a run that was started here.

    Raises:
        InputError: the directory is not a run's, or its config is not one of ours.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a run directory: it has no {CONFIG}, which every run writes."
        )
    saved = read_yaml(path)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), saved))
        assert isinstance(config, Config)
        _check_types(saved, dataclasses.asdict(config))
        check(config, saved=True)
    except (OmegaConfBaseException, InputError, OverflowError) as error:
        raise InputError(f"{path} is not the config of a run: {sentence_end(error)}") from error
    return config


def _check_types(saved: Any, read: Any, key: str = "") -> None:
    """Refuse a value that was turned into another type as it was read: a text for a number."""
    if isinstance(saved, dict) and isinstance(read, dict):
        for name, value in saved.items():
            _check_types(value, read.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(saved, list) and isinstance(read, list):
        for value, of_it in zip(saved, read, strict=True):
            _check_types(value, of_it, key)
    elif type(saved) is not type(read) and (type(saved), type(read)) != (int, float):
        raise InputError(f"{key}={saved!r} has the wrong type.")


def discard(run_dir: Path) -> None:
    """Take away what Hydra made for a run that never began: its log, and the empty directories."""
    if not run_dir.is_dir() or (run_dir / CONFIG).exists():
        return
    for log in run_dir.glob("*.log"):
        log.unlink()
    for directory in (run_dir, *run_dir.parents[:2]):  # outputs/<names>/<time>
        if any(directory.iterdir()):
            return
        directory.rmdir()


# --- what happens on the way ------------------------------------------------------------------


def note_cache(run_dir: Path, mode: str) -> None:
    """Write down what ``data.cache=auto`` came to: a resumed run must not decide again.

    Hidden states from a table and those computed with a batch may differ in their last bits.
    """
    write_json(run_dir / CACHE, {"cache": mode})


def noted_cache(run_dir: Path) -> str | None:
    """What :func:`note_cache` wrote; None where there is nothing to go by."""
    noted = (read_json(run_dir / CACHE) or {}).get("cache")
    return noted if noted in ("disk", "memory", "off") else None


def trained(run_dir: Path, config: Config) -> Path:
    """Where the run saves what it trained: the generator, or the adapter itself."""
    return run_dir / (ADAPTER if config.qpa.variant == "off" else GENERATOR)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that a run would go on from; None where it has none yet."""
    found = sorted((run_dir / CHECKPOINTS).glob("*.ckpt"))
    return found[-1] if found else None


def read_curve(run_dir: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged quantity, from the CSV files of a run's parts.

    A resumed run repeats the steps since its last checkpoint: the later part counts.
    """
    points: dict[int, float] = {}
    for file in sorted((run_dir / "csv").glob("version_*/metrics.csv"), key=_part_number):
        lines = io.StringIO(read_bytes(file, 256 * MIB).decode(), newline="")
        for row in csv.DictReader(lines):
            if row.get(name):
                points[int(row["step"])] = float(row[name])
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def _part_number(file: Path) -> int:
    return int(file.parent.name.removeprefix("version_"))


def last_of_curve(run_dir: Path, name: str) -> float | None:
    """The last value of one logged quantity after training began; None where there is none."""
    try:
        steps, values = read_curve(run_dir, name)
    except (ValueError, KeyError, TypeError, OSError, csv.Error):
        return None
    return values[-1] if values and steps[-1] > 0 and math.isfinite(values[-1]) else None


# --- its results ------------------------------------------------------------------------------


def write_metrics(run_dir: Path, metrics: Metrics) -> None:
    """Write ``metrics.json``, whole or not at all."""
    write_json(run_dir / METRICS, metrics)


def read_metrics(run_dir: Path) -> Metrics | None:
    """A run's ``metrics.json``; None where it has none that can be read."""
    return read_json(run_dir / METRICS)
