"""Going on with a run under another config: what may change, and what becomes of what it has."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from qpa_exp.config import Config
from qpa_exp.data.datamodule import ShuffledBatches, TextDataModule
from qpa_exp.errors import InputError
from qpa_exp.registry import dotted, read_key
from qpa_exp.runs import directory
from qpa_exp.runs.module import total_steps

log = logging.getLogger(__name__)

MAY_CHANGE = (
    # How long it trains.
    "trainer.max_epochs", "trainer.max_steps", "trainer.patience", "trainer.min_delta",
    # What is seen of it, and where things lie.
    "trainer.progress_bar", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps",
    "logger.name", "logger.project", "logger.entity", "logger.group", "logger.tags",
    "logger.run_name", "data.cache_dir", "data.cache_gib",
)  # fmt: skip
"""The keys that ``resume`` takes another value of; under any other the run would be another one."""


def check_changes(run_dir: Path, before: Config, after: Config) -> None:
    """Refuse a change of anything but :data:`MAY_CHANGE`.

    Raises:
        InputError: such a key, or the run lies in a directory that is named after its config.
    """
    for key, _ in dotted(before):
        here, there = read_key(after, key), read_key(before, key)
        if here != there and key not in MAY_CHANGE and not hasattr(here, "__dataclass_fields__"):
            raise InputError(
                f"{key}={here} cannot change when a run goes on, it was {there}: leave it out, or "
                f"start a new run from its weights with init_from={run_dir}. What may change is "
                f"{', '.join(MAY_CHANGE)}."
            )
    name = f"{re.escape(before.peft.method)}-{re.escape(before.qpa.variant)}-[0-9a-f]{{12}}"
    if re.fullmatch(name, run_dir.resolve().name):
        raise InputError(
            f"{run_dir} is a run of a sweep, whose directory is named after its config: copy it "
            "under another name, and go on with the copy."
        )


def check_longer(run_dir: Path, data: TextDataModule, config: Config, step: int) -> None:
    """Refuse a config under which the run has nothing left to train.

    Args:
        run_dir: of the run.
        data: what it trains on.
        config: with its changes.
        step: of the checkpoint that it goes on from; 0 for none.

    Raises:
        InputError: it has come as far already, or had stopped early.
    """
    metrics = directory.read_metrics(run_dir) or {}
    has = max(step, _steps(metrics))
    finished = metrics.get("status") == "complete"
    if finished and step == 0:
        raise InputError(
            f"{run_dir} is complete and has no checkpoint to go on from: start a new run from its "
            f"weights with init_from={run_dir}."
        )
    before, now = directory.read_config(run_dir).trainer.patience, config.trainer.patience
    stopped = finished and metrics.get("stopped_early")
    if stopped and before is not None and now is not None and now <= before:
        raise InputError(
            f"{run_dir} stopped early: give a trainer.patience of more than {before}, or null."
        )
    size, trainer = len(data.examples["train"]), config.trainer
    batches = ShuffledBatches(size, config.data.batch_size, 0, world_size=trainer.devices)
    steps = total_steps(trainer, len(batches))
    if steps < step or (finished and steps <= has):
        raise InputError(
            f"{run_dir} has trained for {has:,} steps, and "
            f"trainer.max_epochs={trainer.max_epochs} trainer.max_steps={trainer.max_steps} ends "
            f"at {steps:,}: give more of them."
        )


def _steps(metrics: directory.Metrics) -> int:
    steps = metrics.get("steps")
    return steps if isinstance(steps, int) and 0 <= steps < 10**18 else 0


def set_aside(run_dir: Path, config: Config) -> None:
    """Keep the results that a run has, and write down its new config.

    They go into ``earlier/step=...``, which is the directory of a complete run itself. What was
    begun and not finished is done again by the same command.
    """
    metrics = directory.read_metrics(run_dir)
    if metrics is not None and metrics.get("status") == "complete":
        before = directory.read_config(run_dir)
        place = run_dir / directory.EARLIER / f"step={_steps(metrics):08d}"
        if place.is_symlink():
            raise InputError(f"{place} is a link: a run's directory holds none.")
        place.mkdir(parents=True, exist_ok=True)
        directory.write_config(place, before)
        trained = directory.trained(run_dir, before)
        for file in trained.iterdir() if trained.is_dir() else ():
            (place / trained.name).mkdir(exist_ok=True)
            shutil.copyfile(file, place / trained.name / file.name)
        # Until here both are complete; from here on the run has to be trained.
        (run_dir / directory.METRICS).replace(place / directory.METRICS)
        if (run_dir / directory.CURVES).exists():
            (run_dir / directory.CURVES).replace(place / directory.CURVES)
        log.info("The results so far are kept in %s", place)
    directory.write_config(run_dir, config)
