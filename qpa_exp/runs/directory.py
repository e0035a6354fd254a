"""A run's directory: the one place that knows which files lie in it. What is on disk is data.

| file | what it holds |
| --- | --- |
| ``config.yaml`` | the run's config, every reference resolved |
| ``checkpoints/*.ckpt`` | the newest states of training |
| ``csv/version_*/metrics.csv`` | what was logged, a part for each time that it was continued |
| ``generator/`` or ``adapter/`` | what was trained |
| ``metrics.json`` | the results; there when the run has ended |
| ``failed.json`` | in a sweep: why the run failed |
| ``cache.json`` | whether hidden states are kept |
| ``inputs.json`` | hashes of the text and the files that the run began with |
| ``curves.png`` | losses against steps |
| ``earlier/step=*`` | what it had before it was trained longer, a run's directory each |
| ``slurm.json`` | the job that began the run |
| ``.lock`` | held by the process that is at the run |
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
import shutil
import stat
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import MISSING

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.config import Config, validate
from qpa_exp.data.corpus import CORPORA, LAYOUTS
from qpa_exp.errors import InputError, one_line, sentence_end
from qpa_exp.files import (
    MIB,
    check_plain,
    file_sha256,
    read_bytes,
    read_json,
    remove_parts,
    typed,
    typed_path,
    write_json,
    write_text,
)
from qpa_exp.files.plain_yaml import MOST_BYTES, read_yaml
from qpa_exp.generator.rules import REGISTRIES as OF_THE_GENERATOR
from qpa_exp.generator.rules import check_generator
from qpa_exp.registry import Registry, dotted, read_key, refuse_unread
from qpa_exp.runs import signals
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.optimizers import OPTIMIZERS
from qpa_exp.task import TASKS

CONFIG, METRICS, FAILED, CACHE = "config.yaml", "metrics.json", "failed.json", "cache.json"
CHECKPOINTS, CURVES, CSV, SLURM = "checkpoints", "curves.png", "csv", "slurm.json"
INPUTS = "inputs.json"
GENERATOR, ADAPTER = "generator", "adapter"
LOCK, OUTPUT, EARLIER = ".lock", "output.log", "earlier"
LOGGED = ("wandb", "tensorboard")

WRITTEN = {
    CONFIG, METRICS, FAILED, CACHE, CHECKPOINTS, CURVES, CSV, SLURM, INPUTS, GENERATOR, ADAPTER,
    EARLIER, *LOGGED,
}  # fmt: skip
"""What a run writes into its directory, and replaces there without asking."""

Metrics = dict[str, Any]


# --- how far a run has come -------------------------------------------------------------------


class State(StrEnum):
    """The state of a run, read from what its directory holds."""

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
    if os.path.exists(run_dir / FAILED):  # noqa: PTH110, which never raises
        return State.failed
    began = os.path.exists(run_dir / CONFIG)  # noqa: PTH110
    return State.interrupted if began else State.new


def error_of(run_dir: Path) -> str | None:
    """Why a run failed or diverged, in a sentence; None where it did neither."""
    for name in (METRICS, FAILED):
        record = read_json(run_dir / name)
        if record is not None and "error" in record:
            return one_line(str(record["error"]))[:1000]
    return None


def record_failure(run_dir: Path, error: Exception) -> None:
    """Keep why the run failed: a sentence for the user, the traceback for a bug report."""
    sentence = str(error)
    if not isinstance(error, InputError):
        sentence = f"{type(error).__name__}: {one_line(error)[:300]}"
    trace = "".join(traceback.format_exception(error))
    write_json(run_dir / FAILED, {"error": sentence, "traceback": trace})


# --- its config -------------------------------------------------------------------------------

REGISTRIES: tuple[Registry[Any], ...] = (
    TASKS, METHODS, CORPORA, LAYOUTS, OPTIMIZERS, LOGGERS, *OF_THE_GENERATOR,
)  # fmt: skip
"""The registries of every config key that names something."""


def check(config: Config, *, saved: bool = False) -> None:
    """Refuse the first value that is out of range, or names nothing, or has no effect.

    Args:
        config: of a run.
        saved: was read from a file. There a key without effect is no mistake.

    Raises:
        InputError: one sentence with the key, its value and what would be right.
    """
    validate(config)
    for registry in REGISTRIES:
        _ = registry[read_key(config, registry.key)]
    searched = OPTIMIZERS[config.optim.name].search is not None
    check_generator(config.qpa, saved=saved, slopes=not searched)
    CORPORA[config.data.name].check(config.data)
    TASKS[config.task].check(config)
    if searched and config.trainer.devices > 1:
        raise InputError(
            f"optim={config.optim.name} searches in one process: give trainer.devices=1, not "
            f"{config.trainer.devices}."
        )
    if not saved:
        refuse_unread(config, REGISTRIES)


def claim(run_dir: Path, config: Config) -> None:
    """Make a new run's directory and write its config.

    Raises:
        InputError: the directory cannot be made, or holds what a run would write over.
    """
    check_place(run_dir)
    try:
        write_config(run_dir, config)
        if signals.slurm_job() is not None:
            write_json(run_dir / SLURM, {"job": signals.slurm_job()})
    except OSError as error:
        raise InputError(f"{run_dir} cannot be written: {error.strerror or error}.") from error


def write_config(run_dir: Path, config: Config) -> None:
    """Write ``config.yaml``, whole or not at all.

    Raises:
        InputError: it would be one that :func:`read_config` refuses.
    """
    text = _as_text(config)
    try:
        check_plain(dataclasses.asdict(config), references=False)
        if (size := len(text.encode())) > MOST_BYTES:
            raise ValueError(f"{size:,} bytes are more than the {MOST_BYTES:,} that it may have")
    except ValueError as error:
        raise InputError(f"The config cannot be written down: {sentence_end(error)}") from error
    write_text(run_dir / CONFIG, text)


def _as_text(config: Config) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def check_place(run_dir: Path) -> None:
    """Whether a new run may go into this directory; nothing is made.

    Raises:
        InputError: it cannot be made, or holds what a run would write over.
    """
    choose = "choose another directory with hydra.run.dir=<directory>"
    try:
        there = sorted(WRITTEN.intersection(place.name for place in run_dir.iterdir()))
    except FileNotFoundError:
        there = []
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{run_dir} can be no run directory ({why}): {choose}.") from error
    if CONFIG in there or METRICS in there:
        raise InputError(
            f"{run_dir} holds a run already: continue it with resume={run_dir}, or {choose}."
        )
    if there:
        raise InputError(
            f"{run_dir} holds {', '.join(there)}, which a run would replace: {choose}."
        )
    lowest = next(place for place in (run_dir, *run_dir.parents) if os.path.lexists(place))
    if not lowest.is_dir() or not os.access(lowest, os.W_OK | os.X_OK):
        raise InputError(f"{lowest} is no directory that can be written to: {choose}.")


def unclaim(run_dir: Path) -> None:
    """Take back what :func:`claim` wrote, and the loggers since: the run has not begun."""
    for name in (CONFIG, SLURM, CACHE, INPUTS, LOCK):
        (run_dir / name).unlink(missing_ok=True)
    for name in (CSV, *LOGGED):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def begun_by_this_job(run_dir: Path, config: Config) -> Path | None:
    """Return the run that this job of SLURM began with this config, before it was started again.

    Args:
        run_dir: where it would begin now: the run is there or beside it.
        config: of the run.
    """
    if not signals.was_restarted():
        return None
    for place in (run_dir, *sorted(run_dir.parent.glob("*/"))):
        noted = read_json(place / SLURM)
        if noted is not None and noted.get("job") == signals.slurm_job():
            with suppress(InputError):
                if read_bytes(place / CONFIG) == _as_text(config).encode():
                    return place
    return None


def note_inputs(run_dir: Path, now: Mapping[str, str]) -> None:
    """Write down the hashes of what a run that begins is made from besides its config."""
    write_json(run_dir / INPUTS, now)


def check_inputs(run_dir: Path, now: Mapping[str, str]) -> None:
    """Refuse to go on with another text or other files than those that the run began with.

    A run that has no such note, from an earlier version, goes on with what there is.

    Raises:
        InputError: one that has changed, with both hashes.
    """
    noted = read_json(run_dir / INPUTS) or {}
    for what, is_now in now.items():
        was = noted.get(what)
        if isinstance(was, str) and _HASH.fullmatch(was) and was != is_now:
            raise InputError(
                f"The run in {run_dir} began with another {what}: its hash was {was} and is now "
                f"{is_now}. Put back what was there, or start a new run."
            )


_HASH = re.compile("[0-9a-f]{40,64}", re.ASCII)


# --- who is at it -----------------------------------------------------------------------------

_SECONDS_FOR_A_LOOK = 1.0
"""How long somebody may hold a lock who only looks whether it is free."""


class Held(InputError):
    """Another process is at the run."""


def lock(run_dir: Path, seconds: float = _SECONDS_FOR_A_LOOK) -> BaseFileLock:
    """Return the lock of a run's directory, not taken yet: who holds it may write there.

    Args:
        run_dir: of the run, which exists.
        seconds: to wait for it before it raises ``filelock.Timeout``.
    """
    return FileLock(run_dir / LOCK, timeout=seconds)


@contextmanager
def held(run_dir: Path, devices: int = 1) -> Iterator[None]:
    """Be the only process at this run; what killed ones have left half written is removed.

    The other processes of a run on several devices are part of it.

    Args:
        run_dir: of the run, which need not exist.
        devices: that it trains on.

    Raises:
        Held: another process is at this run.
        InputError: the directory cannot be written, or holds a link.
    """
    if not signals.first_process(devices):
        yield
        return
    refuse_links(run_dir)
    taken = lock(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        taken.acquire()
    except Timeout:
        raise Held(
            f"Another process is at the run in {run_dir}: wait until it has ended."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise InputError(f"{run_dir} cannot be written: {one_line(error)}.") from error
    try:
        for place in (run_dir, run_dir / CHECKPOINTS):
            remove_parts(place)
        yield
    finally:
        taken.release()


def refuse_links(run_dir: Path) -> None:
    """Refuse links: what a run writes lies in its directory, and a link would lead elsewhere.

    Raises:
        InputError: a file or a directory of a run is a symbolic link.
    """
    for name in (*sorted(WRITTEN), LOCK, OUTPUT):
        if (run_dir / name).is_symlink():
            raise InputError(f"{run_dir / name} is a link: a run's directory holds none.")


def read_config(run_dir: Path) -> Config:
    """Return the config of a run that was started here.

    Raises:
        InputError: the directory is not a run's, or its config is not one of ours.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a run directory: it has no {CONFIG}, which every run writes."
        )
    saved = read_yaml(path)
    with suppress(AttributeError, KeyError, TypeError):
        saved["model"]["recipe"].pop("tuned", None)  # in runs of version 0.1: its values are in qpa
    try:
        if isinstance(saved.get("data"), dict):
            saved["data"].setdefault("join", "eos")  # what runs did before they wrote it down
        config = typed(Config, saved)
        for key, _ in dotted(config):
            if read_key(config, key) == MISSING:
                raise InputError(f"{key} has no value.")
        check(config, saved=True)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not the config of a run: {sentence_end(error)}") from error
    return config


# --- what happens on the way ------------------------------------------------------------------


def note_cache(run_dir: Path, mode: str) -> None:
    """Write down what ``data.cache=auto`` came to: a resumed run must not decide again.

    Hidden states from a table and those computed with a batch may differ in their last bits.
    """
    write_json(run_dir / CACHE, {"cache": mode})


def noted_cache(run_dir: Path) -> str | None:
    """Return what :func:`note_cache` wrote; None where there is nothing to go by."""
    noted = (read_json(run_dir / CACHE) or {}).get("cache")
    return noted if noted in ("disk", "memory", "off") else None


def trained(run_dir: Path, config: Config) -> Path:
    """Where the run saves what it trained: the generator, or the adapter itself."""
    return run_dir / (ADAPTER if config.qpa.variant == "off" else GENERATOR)


def trained_at(place: Path) -> Path:
    """Where ``init_from`` finds weights: of a run, or the directory of a generator or adapter.

    Raises:
        InputError: it is neither, or the run has not saved any yet.
    """
    if (place / CONFIG).is_file():
        found = trained(place, read_config(place))
        if not found.is_dir():
            raise InputError(
                f"init_from={place} has no trained weights yet: continue it with resume={place}."
            )
        return found
    if not any((place / name).is_file() for name in ("qpa_config.json", "adapter_config.json")):
        raise InputError(
            f"init_from={place} is neither a run nor the directory of a saved generator or adapter."
        )
    return place


def weights_sha256(init_from: str) -> list[tuple[str, str]]:
    """Return the name and the hash of every file of tensors that a run starts from.

    Raises:
        InputError: it is neither a run with trained weights nor a saved generator or adapter.
    """
    place = trained_at(typed_path(init_from))
    return [(file.name, file_sha256(file)) for file in sorted(place.glob("*.safetensors"))]


def source_name(place: str) -> str:
    """Return what ``init_from`` is called in a run's name: the run's own directory."""
    path = Path(os.path.abspath(typed_path(place)))  # noqa: PTH100, which follows no link
    path = path.parent if path.name in (GENERATOR, ADAPTER) else path
    return re.sub(r"[^\w.-]", "_", path.name)[:60]


def checkpoint(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after so many optimizer steps lies."""
    return run_dir / CHECKPOINTS / f"step={step:08d}.ckpt"


def checkpoints(run_dir: Path) -> list[Path]:
    """List the run's checkpoints, oldest first: ordinary files with a name that a run gives."""
    found = (run_dir / CHECKPOINTS).glob("step=*.ckpt")
    own = [f for f in found if _STEP.fullmatch(f.name) and stat.S_ISREG(f.lstat().st_mode)]
    return sorted(own, key=step_of)


_STEP = re.compile(r"step=(\d{8,18})\.ckpt", re.ASCII)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps that came before a checkpoint of a run."""
    match = _STEP.fullmatch(checkpoint.name)
    assert match is not None
    return int(match.group(1))


def read_curve(run_dir: Path, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of one logged quantity, from the CSV files of a run's parts.

    A resumed run repeats the steps since its last checkpoint: the later part counts. A line that a
    killed process has left half written is skipped.

    Raises:
        InputError: a file that cannot be read.
    """
    points: dict[int, float] = {}
    for file in sorted((run_dir / CSV).glob("version_*/metrics.csv"), key=_part_number):
        text = read_bytes(file, _LARGEST_CURVES).decode(errors="replace")
        try:
            for row in csv.DictReader(io.StringIO(text, newline="")):
                with suppress(KeyError, TypeError, ValueError):
                    step, value = int(row["step"]), float(row[name])
                    if 0 <= step < 2**53:
                        points[step] = value
        except csv.Error as error:
            raise InputError(f"{file} is no CSV file: {error}.") from error
    steps = sorted(points)
    return steps, [points[step] for step in steps]


_LARGEST_CURVES = 512 * MIB


def _part_number(file: Path) -> tuple[int, str]:
    number = file.parent.name.removeprefix("version_")
    return (int(number) if number.isdecimal() and len(number) < 19 else -1), number


def last_of_curve(run_dir: Path, name: str) -> float | None:
    """Give the last value of one logged quantity after training began; None where there is none."""
    try:
        steps, values = read_curve(run_dir, name)
    except InputError:
        return None
    return values[-1] if values and steps[-1] > 0 and math.isfinite(values[-1]) else None


def validation_of_kept(run_dir: Path, name: str) -> float | None:
    """Return a metric on the validation split with the weights that a run kept.

    None where it has none.

    Args:
        run_dir: of the run, complete.
        name: of the metric by which the task's runs are ranked. A run of before the choice was
            recorded kept the last weights.
    """
    value = (read_metrics(run_dir) or {}).get(validation_key(name))
    if isinstance(value, float) and math.isfinite(value):
        return value
    return last_of_curve(run_dir, f"validation/{name}")


def validation_key(name: str) -> str:
    """Where ``metrics.json`` has a metric of the kept weights on the validation split."""
    return f"validation_{name}"


# --- its results ------------------------------------------------------------------------------


def write_metrics(run_dir: Path, metrics: Metrics) -> None:
    """Write ``metrics.json``, whole or not at all."""
    write_json(run_dir / METRICS, metrics)


def finite(value: Any) -> Any:
    """Return what JSON can hold of a result: a number that is infinite, or none, becomes None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run_dir: Path) -> Metrics | None:
    """Return a run's ``metrics.json``; None where it has none that can be read."""
    return read_json(run_dir / METRICS)
