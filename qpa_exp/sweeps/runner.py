"""Says what a sweep costs, runs what is not complete, and says what failed."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import read_json
from qpa_exp.runs import signals
from qpa_exp.runs.directory import FAILED, LOCK, METRICS, OUTPUT, State, error_of, record_failure
from qpa_exp.sweeps.studies import say
from qpa_exp.sweeps.worker import attempt_all, hand_over, is_busy, work
from qpa_exp.task import TASKS

if TYPE_CHECKING:
    from qpa_exp.sweeps.prepare import Job

_SECONDS_BETWEEN_LOOKS = 0.5
_LONGEST_TABLE = 80
_KILLED = "it ended without a result: its process was killed"


@contextmanager
def progress(jobs: Sequence[Job]) -> Iterator[None]:
    """Watch the directories of runs and print a line for each that ends.

    What a run prints is sent elsewhere while it lasts, so the terminal is kept from the start.
    """
    waiting, total, terminal = list(jobs), len(jobs), sys.stdout
    before, began = {job.run_dir: _mark(job) for job in jobs}, time.monotonic()
    over = threading.Event()

    def look() -> None:
        for job in list(waiting):
            state, _ = mark = _mark(job)
            if mark == before[job.run_dir] or not (state.is_final or state is State.failed):
                continue
            waiting.remove(job)
            done = total - len(waiting)
            complete = state is State.complete
            said = result_of(job) if complete else f"{state}: {error_of(job.run_dir)}"
            if waiting:
                seconds = (time.monotonic() - began) / done * len(waiting)
                said += f"; about {duration(seconds)} left"
            line = f"[{done:>{len(str(total))}}/{total}] {job.title}: {said}"
            print(line, file=terminal, flush=True)

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _mark(job: Job) -> tuple[State, int]:
    """Tells a failure from one that is on record from the last time."""
    try:
        return job.state, (job.run_dir / FAILED).stat().st_mtime_ns
    except OSError:
        return job.state, 0


def result_of(job: Job) -> str:
    """Return the result of a complete run, in a few words."""
    metrics = read_json(job.run_dir / METRICS) or {}
    names = [each.name for each in TASKS[job.config.task].metrics if each.restates is None]
    parts = [
        f"{name} {metrics[name]:.4g}"
        for name in (*names, "gradient_variance")
        if isinstance(metrics.get(name), float)
    ]
    parts.append(f"{job.counts.trainable_params:,} trainable parameters")
    seconds = metrics.get("train_seconds")
    if isinstance(seconds, float):
        parts.append(f"trained for {duration(seconds)}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write seconds for people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


class SweepFailed(InputError):
    """Some runs of a sweep have no result; the rest do."""


class AfterWorkers(signals.AtOnce):
    """A handler that ends a sweep when the runs of its other processes have saved their work.

    Each of those ends after the step that it is in, with a checkpoint. A second signal, more than a
    second later, ends all at once.

    Args:
        jobs: of the sweep.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self._locks = {str((job.run_dir / LOCK).absolute()) for job in jobs}
        self._asked: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on and wait: joblib would end its processes without asking them."""
        if self._asked is None:
            self._asked = time.monotonic()
            workers = self._at_a_run()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.terminate()
            while set(workers) & set(self._at_a_run()):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        elif self._began is None:  # still waiting
            signals.leave_at_second(number, self._asked)
            return
        super().__call__(number, frame)

    def _at_a_run(self) -> list[psutil.Process]:
        """Give the processes of this one that hold a run's lock."""
        found = []
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it has ended
                if any(file.path in self._locks for file in child.open_files()):
                    found.append(child)
        return found


class Runner:
    """Gives jobs to processes of its own, or to Hydra's launcher, until each has ended.

    Args:
        context: Hydra's.
        master: the sweep's own config, which names the launcher.
    """

    def __init__(self, context: HydraContext, master: DictConfig) -> None:
        self._side_by_side: int | None = master.hydra.sweeper.side_by_side
        if self._side_by_side is not None and self._side_by_side < 1:
            raise InputError(
                f"hydra.sweeper.side_by_side={self._side_by_side} is too small: give at least 1."
            )
        if master.hydra.launcher.get("n_jobs") == 0:  # fewer than none leave cores free
            raise InputError("hydra.launcher.n_jobs=0 is too small: give at least 1.")
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=work, config=master
        )
        self._launched = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Run those that are not complete, each once; wait for those of another process.

        A run whose process is killed goes on once more, after the others and alone: a run beside
        it may have taken the memory.

        Raises:
            InputError: the launcher could not start any.
        """
        waiting = [job for job in unique(jobs) if not job.state.is_final]
        if not waiting:
            return
        killed: set[Path] = set()
        with progress(waiting), signals.handled(AfterWorkers(waiting)):
            while waiting:
                free = [job for job in waiting if not is_busy(job.run_dir)]
                if not free:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    continue
                batch = [job for job in free if job.run_dir not in killed] or free[:1]
                later = {job.run_dir for job in free} - {job.run_dir for job in batch}
                later |= self._launch(batch, killed)
                waiting = [job for job in waiting if job.run_dir in later or is_busy(job.run_dir)]

    def _launch(self, jobs: Sequence[Job], killed: set[Path]) -> set[Path]:
        """Have these made; return the directories of those that must be given out again.

        Where one process is killed, joblib and submitit give up all of these jobs.

        Args:
            jobs: at least one.
            killed: the runs whose process was killed before; this adds to them.
        """
        jobs = [job for job in jobs if not job.state.is_final]  # another process may have made it
        if not jobs:
            return set()
        for job in jobs:
            hand_over(job.run_dir, job.config)
        before = {job.run_dir: _began(job) for job in jobs}
        try:
            self._give_out(jobs)
        except RuntimeError as error:  # the kind of joblib's own errors, and of submitit's
            begun = {
                place
                for job in jobs
                if (place := job.run_dir) in killed or _began(job) != before[place]
            }
            if not begun:
                raise InputError(
                    f"No run could be started: {type(error).__name__}: {first_line(error)}"
                ) from error
            lost = {
                job.run_dir
                for job in jobs
                if job.run_dir in begun and not (job.state.is_final or job.state is State.failed)
            }
            for run_dir in lost & killed:
                record_failure(run_dir, InputError(_KILLED))
            again = before.keys() - begun | lost - killed
            killed |= lost
            return again
        return set()

    def _give_out(self, jobs: Sequence[Job]) -> None:
        if self._side_by_side is not None:
            attempt_all([job.run_dir for job in jobs], self._side_by_side)
            return
        overrides = [[f"hydra.sweep.subdir={job.run_dir.name}"] for job in jobs]
        self._launcher.launch(overrides, initial_job_idx=self._launched)
        self._launched += len(jobs)


def _began(job: Job) -> int:
    """Tells whether a run has been begun since the last look: when its output was last touched."""
    try:
        return (job.run_dir / OUTPUT).stat().st_mtime_ns
    except OSError:
        return 0


def unique(jobs: Sequence[Job]) -> list[Job]:
    """Leave out those that are the same run as one before."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(str(job.run_dir), job)
    return list(first.values())


def announce(jobs: Sequence[Job], title: str) -> None:
    """Say how many runs there are, what each costs, and which are done already."""
    states = Counter(job.state for job in jobs)
    final = sum(n for state, n in states.items() if state.is_final)
    if len(jobs) <= _LONGEST_TABLE:
        Console().print(_table(jobs, title))
    sizes = [job.counts.trainable_params for job in jobs]
    say(f"{title}: {_runs(len(jobs))} of {min(sizes):,} to {max(sizes):,} trainable parameters.")
    if final:
        say(f"{_runs(final)} complete already (same config, data and code): skipped.")
    if states[State.interrupted]:
        say(f"{_runs(states[State.interrupted])} interrupted: continued from the last checkpoint.")


def finish(jobs: Sequence[Job]) -> None:
    """Say how it ended.

    Raises:
        SweepFailed: a run has no result.
    """
    failed = [job for job in jobs if job.state is not State.complete]
    for job in failed:
        reason = error_of(job.run_dir) or _KILLED
        say(f"failed: {job.title}: {reason} ({job.run_dir})")
    if failed:
        again = [job for job in failed if not job.state.is_final]
        rest = "the same command runs those alone again."
        if len(again) < len(failed):
            rest = "those that diverged are not run again, for they would again."
        raise SweepFailed(f"{_runs(len(failed))} of {len(jobs)} failed, listed above; {rest}")
    say(f"All {len(jobs)} runs are complete." if len(jobs) > 1 else "The run is complete.")


def _runs(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"


def _table(jobs: Sequence[Job], title: str) -> Table:
    table = Table(title=title)
    table.add_column("run")
    for column in ("trainable", "m", "qubits"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for job in jobs:
        counts = job.counts
        qubits = "" if counts.n_qubits is None else str(counts.n_qubits)
        sizes = (f"{counts.trainable_params:,}", f"{counts.generated_params:,}", qubits)
        table.add_row(Text(job.title), *sizes, str(job.state))
    return table
