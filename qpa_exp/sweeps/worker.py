"""What is called for each run of a sweep, in whichever process of whichever machine.

The run's directory says all: the sweep has written ``config.yaml`` there, and this makes the run.

A run on several devices is one process for each of them. Where the cluster has started those, as
SLURM and submitit do, each of them comes here. Else the run gets a process of its own
(``python -m qpa_exp.sweeps.worker <directory>``), which Lightning starts again for every further
device: it would start the sweep itself again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qpa_exp.cli import register_schema, to_config
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import made
from qpa_exp.machine import release_freed_memory
from qpa_exp.runs import directory, signals
from qpa_exp.runs.directory import (
    CONFIG,
    FAILED,
    LOCK,
    OUTPUT,
    State,
    claim,
    error_of,
    read_config,
    record_failure,
    state_of,
    write_config,
)
from qpa_exp.sweeps.run_name import relevant
from qpa_exp.sweeps.studies import register_studies, sweeps_dir

# A process of a launcher imports this module to find the task, and composes before it calls it: the
# schema and the studies must be known by then.
register_schema()
register_studies(sweeps_dir())


def work(composed: DictConfig) -> None:
    """One run of a sweep.

    Raises:
        InputError: it failed, under another sweeper than ours, which would not look.
    """
    hydra = HydraConfig.get()
    run_dir, ours = Path(hydra.runtime.output_dir), "records" in hydra.sweeper
    with contextlib.chdir(hydra.runtime.cwd):  # hydra.job.chdir=true may have left it
        if not ours:
            hand_over(run_dir, to_config(composed), same=True)
        attempt(run_dir)
    if ours:
        return
    if state_of(run_dir) is State.failed:
        raise InputError(f"{error_of(run_dir)} ({run_dir})")


def attempt_all(run_dirs: Sequence[Path], processes: int) -> None:
    """:func:`attempt` each, so many at once. A process of joblib's may stand elsewhere by now."""
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise InputError("Runs side by side need joblib: pip install 'qpa-exp[sweeps]'.") from error
    places = [run_dir.absolute() for run_dir in run_dirs]
    Parallel(n_jobs=processes, batch_size=1)(delayed(attempt)(place) for place in places)


def hand_over(run_dir: Path, config: Config, *, same: bool = False) -> None:
    """Write the config of a run that has not ended into its directory.

    One that was there before may differ in what has no effect on the result, such as where the
    text lies or what logs the run: what was just given holds.

    Args:
        run_dir: of the run.
        config: of the run.
        same: whether a config that is there must be looked at; a directory that is named after its
            content holds no other.

    Raises:
        InputError: the directory holds a run of another config.
    """
    with made(run_dir), contextlib.suppress(Timeout), directory.lock(run_dir):
        if not (run_dir / CONFIG).exists():
            claim(run_dir, config)
        elif same and relevant(read_config(run_dir)) != relevant(config):
            raise InputError(
                f"{run_dir} holds a run of another config: sweep with hydra/sweeper=study, which "
                "gives every run a directory of its own, or set hydra.sweep.dir."
            )
        elif not state_of(run_dir).is_final:
            write_config(run_dir, config)


def attempt(run_dir: Path) -> None:
    """Make a run, or go on with it, unless it is complete or another process is at it.

    Nothing is raised: a failure is recorded in the run's directory, which holds its config.
    """
    if _devices(run_dir) > 1 and not _is_one_of_several():
        with contextlib.suppress(directory.Held):
            _attempt_apart(run_dir)
    else:
        _attempt_here(run_dir)


def _devices(run_dir: Path) -> int:
    with contextlib.suppress(InputError):  # which will be recorded
        return read_config(run_dir).trainer.devices
    return 1


def _is_one_of_several() -> bool:
    """Whether a process for each device has been started already; if so, it knows its place."""
    known = os.environ.keys() & {"SLURM_NTASKS", "LOCAL_RANK"}
    if "SUBMITIT_EXECUTOR" in os.environ and not known:  # submitit on one machine
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _attempt_apart(run_dir: Path) -> None:
    """:func:`attempt`, in a process of its own; a signal is passed on to it."""
    if is_busy(run_dir) or state_of(run_dir).is_final:
        return
    (run_dir / FAILED).unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name, str(run_dir)]
    with signals.at_once(run_dir), (run_dir / OUTPUT).open("a", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # after its step, with a checkpoint
            process.wait()
            raise
    if status and not is_busy(run_dir) and state_of(run_dir) is State.interrupted:
        record_failure(
            run_dir, InputError(f"Its processes ended with status {status}: see {OUTPUT}.")
        )


def main(arguments: Sequence[str]) -> int:
    """Make a run in its own process; the status tells Lightning in the first one of a failure."""
    run_dir = Path(arguments[0])
    _attempt_here(run_dir, parent=os.getppid())
    return 0 if state_of(run_dir) is not State.failed else 1


def _attempt_here(run_dir: Path, parent: int | None = None) -> None:
    os.environ.setdefault("WANDB_JOB_TYPE", "sweep")
    try:
        devices = _devices(run_dir)
        with _ended_with_the_sweep(parent), directory.held(run_dir, devices):
            if state_of(run_dir).is_final:
                return
            if signals.first_process(devices):
                (run_dir / FAILED).unlink(missing_ok=True)
            _record(run_dir)
    except directory.Held:
        return
    finally:
        # A run keeps what it has freed, for its next step. The next run of this process begins with
        # little again: joblib ends a worker that has grown, and a new one takes long to import.
        gc.collect()
        gc.freeze()  # what is left are the packages: no need to look through them again
        release_freed_memory()


def _record(run_dir: Path) -> None:
    try:
        with _output_to(run_dir / OUTPUT):
            from qpa_exp.runs.train import go_on

            go_on(run_dir, own=True)
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
def _ended_with_the_sweep(parent: int | None) -> Iterator[None]:
    """End a process of joblib's when the sweep's own process has: nobody waits for the run.

    It ends as at any SIGTERM: after the step, with a checkpoint.

    Args:
        parent: of the process, where it is one that this module has started.
    """
    if parent is None and (sweep := multiprocessing.parent_process()) is not None:
        parent = sweep.pid
    if parent is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        if os.getppid() != parent:  # joblib would begin the next run here
            os._exit(128 + signal.SIGTERM)


_SECONDS_BETWEEN_LOOKS = 0.5


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what a run prints and logs to a file: the terminal is the sweep's."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    path.touch()  # even before it prints: the sweep sees that the run has begun
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
