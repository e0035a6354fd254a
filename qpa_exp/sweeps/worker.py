"""What is called for each run of a sweep, in whichever process of whichever machine.

The run's directory says all: the sweep has written ``config.yaml`` there, and this makes the run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qpa_exp.cli import register_schema, to_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.machine import release_freed_memory
from qpa_exp.runs import directory
from qpa_exp.runs.directory import (
    CONFIG,
    FAILED,
    LOCK,
    OUTPUT,
    claim,
    read_config,
    record_failure,
    state_of,
)
from qpa_exp.sweeps.run_name import relevant
from qpa_exp.sweeps.studies import register_studies, sweeps_dir

# A process of a launcher imports this module to find the task, and composes before it calls it: the
# schema and the studies must be known by then.
register_schema()
register_studies(sweeps_dir())


def work(composed: DictConfig) -> None:
    """One run of a sweep."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    if "records" not in hydra.sweeper:  # another sweeper than ours: the config is Hydra's
        hand_over(run_dir, to_config(composed), same=True)
    attempt(run_dir)


def attempt_all(run_dirs: Sequence[Path], processes: int) -> None:
    """:func:`attempt` each, so many at once."""
    if processes == 1:
        for run_dir in run_dirs:
            attempt(run_dir)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise InputError("Runs side by side need joblib: pip install 'qpa-exp[sweeps]'.") from error
    Parallel(n_jobs=processes, batch_size=1)(delayed(attempt)(run_dir) for run_dir in run_dirs)


def hand_over(run_dir: Path, config: Config, *, same: bool = False) -> None:
    """Write the config of a run that is not begun into its directory.

    Args:
        run_dir: of the run.
        config: of the run.
        same: whether a config that is there must be looked at; a directory that is named after its
            content holds no other.

    Raises:
        InputError: the directory holds a run of another config.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Timeout), directory.lock(run_dir):
        if not (run_dir / CONFIG).exists():
            claim(run_dir, config)
    if same and relevant(read_config(run_dir)) != relevant(config):
        raise InputError(
            f"{run_dir} holds a run of another config: sweep with hydra/sweeper=study, which gives "
            "every run a directory of its own, or set hydra.sweep.dir."
        )


def attempt(run_dir: Path, make: Callable[[Path], Any] | None = None) -> None:
    """Make a run, or go on with it, unless it is complete or another process is at it.

    Nothing is raised: a failure is recorded in the run's directory.

    Args:
        run_dir: of the run, which holds its config.
        make: what is called; :func:`qpa_exp.runs.train.go_on` where it is left out.
    """
    os.environ.setdefault("WANDB_JOB_TYPE", "sweep")
    try:
        with _ended_with_the_sweep(), directory.held(run_dir):
            if state_of(run_dir).is_final:
                return
            (run_dir / FAILED).unlink(missing_ok=True)
            _record(make, run_dir)
    except directory.Held:
        return
    finally:
        # A run keeps what it has freed, for its next step. The next run of this process begins with
        # little again: joblib ends a worker that has grown, and a new one takes long to import.
        gc.collect()
        release_freed_memory()


def _record(make: Callable[[Path], Any] | None, run_dir: Path) -> None:
    try:
        with _output_to(run_dir / OUTPUT):
            if make is None:
                from qpa_exp.runs.train import go_on

                make = functools.partial(go_on, own=True)
            make(run_dir)
    except Exception as error:  # whatever it is, the other runs of the sweep go on
        if not state_of(run_dir).is_final:  # a divergence has been recorded by the run itself
            record_failure(run_dir, error)


def is_busy(run_dir: Path) -> bool:
    """Whether a process is making this run now."""
    if not (run_dir / LOCK).exists():
        return False
    try:
        with directory.lock(run_dir, seconds=0.0):
            return False
    except Timeout:
        return True


@contextlib.contextmanager
def _ended_with_the_sweep() -> Iterator[None]:
    """In a process of joblib's, end when the sweep's own process has: nobody waits for the run.

    It ends as at any SIGTERM: after the step, with a checkpoint.
    """
    sweep = multiprocessing.parent_process()
    if sweep is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            if os.getppid() != sweep.pid:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if os.getppid() != sweep.pid:  # joblib would begin the next run here
            os._exit(128 + signal.SIGTERM)


_SECONDS_BETWEEN_LOOKS = 0.5


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What a run prints and logs goes to a file: the terminal is the sweep's."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    with path.open("a", encoding="utf-8") as file:
        root.handlers = [h for h in before if type(h) is not logging.StreamHandler]
        root.handlers.append(logging.StreamHandler(file))
        root.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers = before
            root.setLevel(level)
