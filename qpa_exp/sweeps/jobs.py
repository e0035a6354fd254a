"""What Hydra calls for each run: the task, and how a run of a sweep is attempted."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qpa_exp.cli import register_schema, to_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.machine import release_freed_memory
from qpa_exp.runs.directory import read_config
from qpa_exp.runs.states import CONFIG, FAILED, record_failure, state_of
from qpa_exp.sweeps.run_name import relevant
from qpa_exp.sweeps.studies import Work

LOCK, OUTPUT = ".lock", "output.log"

# A worker process of a launcher imports this module to find the task, and composes before it
# calls it: the schema must be known by then.
register_schema()

refused: list[InputError] = []
"""The one run's refusal, raised after Hydra, which would print a line of its own."""


def task(composed: DictConfig) -> None:
    """One run of Hydra's: alone, or of a sweep."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN:
        config = to_config(composed)
        refuse_another(config, run_dir)
        # Another sweeper than ours has neither a study nor a kind of work.
        work = WORKS[Work(hydra.sweeper.get("work", Work.train))]
        attempt(work, _in_a_sweep(config, hydra.sweeper.get("study")), run_dir)
        return
    from qpa_exp.runs.directory import discard
    from qpa_exp.runs.train import run

    try:
        run(to_config(composed), run_dir)
    except InputError as error:
        refused.append(error)
    finally:
        discard(run_dir)


def refuse_another(config: Config, run_dir: Path) -> None:
    """Another sweeper than ours may give a run the directory of one with another config.

    Raises:
        InputError: the directory holds such a run.
    """
    if (run_dir / CONFIG).exists() and relevant(read_config(run_dir)) != relevant(config):
        raise InputError(
            f"{run_dir} holds a run of another config: sweep with hydra/sweeper=study, which gives "
            "every run a directory of its own, or set hydra.sweep.dir."
        )


def attempt(work: Callable[[Config, Path], Any], config: Config, run_dir: Path) -> None:
    """Make a run, or go on with it, unless it is complete or another process is at it.

    Nothing is raised: a failure is recorded in the run's directory.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            if state_of(run_dir).is_final:
                return
            (run_dir / FAILED).unlink(missing_ok=True)
            _record(work, config, run_dir)
    except Timeout:
        return
    finally:
        # A run keeps what it has freed, for its next step. The next run of this process begins with
        # little again: joblib ends a worker that has grown, and a new one takes long to import.
        gc.collect()
        release_freed_memory()


def _record(work: Callable[[Config, Path], Any], config: Config, run_dir: Path) -> None:
    try:
        with _output_to(run_dir / OUTPUT):
            work(config, run_dir)
    except Exception as error:  # whatever it is, the other runs of the sweep go on
        if not state_of(run_dir).is_final:  # a divergence has been recorded by the run itself
            record_failure(run_dir, error)


def is_busy(run_dir: Path) -> bool:
    """Whether a process is making this run now."""
    if not (run_dir / LOCK).exists():
        return False
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _train(config: Config, run_dir: Path) -> None:
    from qpa_exp.runs.train import resume, run

    if (run_dir / CONFIG).exists():
        resume(run_dir)
    else:
        run(config, run_dir)


def _gradient_variance(config: Config, run_dir: Path) -> None:
    from qpa_exp.sweeps.gradients import measure

    measure(config, run_dir)


WORKS: dict[Work, Callable[[Config, Path], Any]] = {
    Work.train: _train,
    Work.gradient_variance: _gradient_variance,
}


def _in_a_sweep(config: Config, study: str | None) -> Config:
    """No bar, for nobody watches it; in W&B a study's runs share a group, a tag and a job type."""
    name = study or "sweep"
    os.environ.setdefault("WANDB_JOB_TYPE", "sweep")
    given = config.logger
    tags = list(dict.fromkeys([*given.tags, name]))
    logger = dataclasses.replace(given, group=given.group or name, tags=tags)
    trainer = dataclasses.replace(config.trainer, progress_bar=False)
    return dataclasses.replace(config, logger=logger, trainer=trainer)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What a run prints and logs goes to a file: the terminal is the sweep's."""
    root = logging.getLogger()
    before = list(root.handlers)
    with path.open("a", encoding="utf-8") as file:
        root.handlers = [h for h in before if type(h) is not logging.StreamHandler]
        root.handlers.append(logging.StreamHandler(file))
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers = before
