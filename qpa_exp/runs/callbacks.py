"""How long training takes and where its time goes; its bars; and where checkpoints go."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)

log = logging.getLogger(__name__)


SECTIONS = ("backbone", "generator", "head")
_MARKS_HELD = 4096


class Stopwatch:
    """Adds up seconds, section by section.

    On a GPU the sections are marked by events, which cost nothing; they are read at the end.

    Attributes:
        on: nothing is measured while this is false.
    """

    def __init__(self) -> None:
        self.on = False
        self._seconds = dict.fromkeys(SECTIONS, 0.0)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def section(self, name: str, device: torch.device) -> Iterator[None]:
        """Count what is done in this context as ``name``."""
        if not self.on:
            yield
        elif device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((name, begin, end))
            if len(self._marks) >= _MARKS_HELD:
                self._read_marks()
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def split(self, total: float) -> dict[str, float]:
        """Seconds in each section, and what is left of ``total`` as ``other``."""
        self._read_marks()
        return self._seconds | {"other": max(0.0, total - sum(self._seconds.values()))}

    def _read_marks(self) -> None:
        if self._marks:
            torch.cuda.synchronize()
        for name, begin, end in self._marks:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._marks.clear()


class StepTimes(Callback):
    """Seconds of training, over all the parts of a resumed run, and seconds of one step.

    Attributes:
        train_seconds: wall time in training, validation during it included.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._began: float | None = None
        self._batch_began = 0.0
        self._steps: list[float] = []
        self._tokens = 0

    @property
    def train_seconds(self) -> float:
        """Wall time in training so far."""
        running = 0.0 if self._began is None else time.perf_counter() - self._began
        return self._before + running

    @property
    def step_seconds_median(self) -> float | None:
        """The median over this process' training batches; None before the first."""
        return statistics.median(self._steps) if self._steps else None

    @property
    def batch_seconds(self) -> float:
        """In this process' training batches, all together."""
        return float(sum(self._steps))

    @property
    def tokens_per_second(self) -> float | None:
        """Positions, padding included, over the time in this process' batches."""
        return self._tokens / self.batch_seconds if self._steps else None

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Of all the training batches that are still to come; None before the first."""
        median = self.step_seconds_median
        if median is None:
            return None
        batches = int(trainer.num_training_batches)
        left = (trainer.max_epochs or 1) * batches - trainer.fit_loop.total_batch_idx - 1
        if trainer.max_steps != -1:
            steps = trainer.max_steps - trainer.global_step
            left = min(left, steps * trainer.accumulate_grad_batches)
        return max(0, left) * median

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._before, self._began = self.train_seconds, None

    def on_train_batch_start(self, *args: Any) -> None:
        """A batch begins."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch ends; on a GPU its last kernels may still run, which the next one waits for."""
        self._steps.append(time.perf_counter() - self._batch_began)
        self._tokens += batch["input_ids"].numel()

    def state_dict(self) -> dict[str, Any]:
        """Lightning keeps this in the checkpoint."""
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._before = float(state_dict["train_seconds"])


class _Speed(ProgressBar):
    """Beside what is logged, how fast it goes and how long it will take."""

    times: StepTimes

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Lightning asks for this each time it draws the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        rate, left = self.times.tokens_per_second, self.times.seconds_left(trainer)
        if rate is not None and left is not None:
            shown["tokens/s"] = f"{rate:,.0f}"
            shown["left"] = str(timedelta(seconds=round(left)))
        return shown


class TerminalBar(_Speed, RichProgressBar):
    """On a terminal."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__(leave=True)
        self.times = times


class PlainBar(_Speed, TQDMProgressBar):
    """In a file."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__(refresh_rate=50)
        self.times = times


class SayHowToResume(Callback):
    """Ctrl-C ends a run; say how to go on with it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lightning leaves with status 1 after this."""
        if isinstance(exception, KeyboardInterrupt):
            log.info("Interrupted. To continue: python -m qpa_exp resume=%s", self.run_dir)


def checkpoints(directory: Path, every_n_steps: int) -> ModelCheckpoint:
    """Keep the newest checkpoint: the next is whole on disk before the last one is removed."""
    return ModelCheckpoint(
        dirpath=directory, filename="{step:08d}", every_n_train_steps=every_n_steps, save_top_k=1
    )
