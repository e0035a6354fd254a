"""A line for each run of a sweep that ends, whatever launcher runs it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from qpa_exp.files.reading import read_json
from qpa_exp.runs.directory import FAILED, METRICS, State, error_of

if TYPE_CHECKING:
    from qpa_exp.sweeps.prepare import Job

_SECONDS_BETWEEN_LOOKS = 0.5


def say(line: str) -> None:
    """To the terminal, at once."""
    print(line, flush=True)


class Progress:
    """Watches the directories of runs and prints a line for each that ends.

    What a run prints is sent elsewhere while it lasts, so the terminal is kept from the start.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._open = list(jobs)
        self._total = len(jobs)
        self._before = {job.run_dir: _mark(job) for job in jobs}
        self._terminal = sys.stdout
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        for job in list(self._open):
            state, _ = mark = _mark(job)
            ended = state in (State.complete, State.diverged, State.failed)
            if ended and mark != self._before[job.run_dir]:
                self._open.remove(job)
                self._report(job, state)

    def _report(self, job: Job, state: State) -> None:
        done = self._total - len(self._open)
        width = len(str(self._total))
        left = self._left(done)
        line = f"[{done:>{width}}/{self._total}] {job.title}: "
        line += result_of(job) if state is State.complete else f"{state}: {error_of(job.run_dir)}"
        print(line + left, file=self._terminal, flush=True)

    def _left(self, done: int) -> str:
        remaining = self._total - done
        if not remaining:
            return ""
        seconds = (time.monotonic() - self._began) / done * remaining
        return f"; about {duration(seconds)} left"


def _mark(job: Job) -> tuple[State, int]:
    """Tells a failure from one that is on record from the last time."""
    try:
        return job.state, (job.run_dir / FAILED).stat().st_mtime_ns
    except FileNotFoundError:
        return job.state, 0


def result_of(job: Job) -> str:
    """The result of a complete run, in a few words."""
    metrics = read_json(job.run_dir / METRICS) or {}
    parts = [
        f"{name} {metrics[name]:.4g}"
        for name in ("perplexity", "perplexity_padded", "gradient_variance")
        if isinstance(metrics.get(name), float)
    ]
    parts.append(f"{job.counts.trainable_params:,} trainable parameters")
    seconds = metrics.get("train_seconds")
    if isinstance(seconds, float):
        parts.append(f"trained for {duration(seconds)}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
