"""How long training takes and where its time goes, and the bars that show it."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.callbacks.timer import Timer
from pytorch_lightning.utilities import rank_zero_only

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


class StepTimes(Timer):
    """Seconds of training, over all the parts of a resumed run, and seconds of one step."""

    def __init__(self) -> None:
        super().__init__()
        self._batch_began = 0.0
        self._steps: list[float] = []
        self._tokens = 0

    @property
    def train_seconds(self) -> float:
        """Wall time in training so far, validation during it included."""
        return self.time_elapsed()

    @property
    def step_seconds_median(self) -> float | None:
        """The median over this process' training batches; None before the first."""
        return statistics.median(self._steps) if self._steps else None

    @property
    def batch_seconds(self) -> float:
        """Sum the seconds of this process' training batches."""
        return float(sum(self._steps))

    @property
    def tokens_per_second(self) -> float | None:
        """Positions, padding included, over the time in this process' batches."""
        return self._tokens / self.batch_seconds if self._steps else None

    def seconds_left(self, trainer: Trainer) -> float | None:
        """Estimate the seconds of all training batches still to come; None before the first."""
        median = self.step_seconds_median
        if median is None:
            return None
        batches = int(trainer.num_training_batches)
        left = (trainer.max_epochs or 1) * batches - trainer.fit_loop.total_batch_idx - 1
        if trainer.max_steps != -1:
            steps = trainer.max_steps - trainer.global_step
            left = min(left, steps * trainer.accumulate_grad_batches)
        return max(0, left) * median

    def on_train_batch_start(self, *args: Any) -> None:
        """Note that a batch begins."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Note that a batch ends.

        On a GPU its last kernels may still run: the next one waits for them.
        """
        self._steps.append(time.perf_counter() - self._batch_began)
        self._tokens += args[2]["input_ids"].numel()

    def state_dict(self) -> dict[str, Any]:
        """Lightning keeps this in the checkpoint."""
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        super().load_state_dict({"time_elapsed": {"train": float(state_dict["train_seconds"])}})


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

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch, up to where ``max_steps`` ends."""
        trainer, batches = self.trainer, super().total_train_batches
        if trainer.max_steps == -1:
            return batches
        per_step = trainer.accumulate_grad_batches
        before = trainer.current_epoch * math.ceil(batches / per_step)
        return min(batches, (trainer.max_steps - before) * per_step)


class TerminalBar(_Speed, RichProgressBar):
    """Shows progress on a terminal."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__(leave=True)
        self.times = times


class Lines(_Speed):
    """Writes to a file a line every :data:`SECONDS_BETWEEN_LINES`, and one after training."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__()
        self.times, self._said = times, time.monotonic()

    def disable(self) -> None:
        """Nothing to do: of several processes the first one alone logs."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """How far training is."""
        if self._is_time():
            self._say(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where training has ended."""
        self._say(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """How far a validation is."""
        self._say_of("validation", args[3], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """How far a test is."""
        self._say_of("test", args[3], trainer.num_test_batches)

    def _is_time(self) -> bool:
        return time.monotonic() - self._said >= SECONDS_BETWEEN_LINES

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._said = time.monotonic()
        shown = self.get_metrics(trainer, pl_module).items()
        figures = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown)
        steps = f"{trainer.global_step:,} of {int(trainer.estimated_stepping_batches):,}"
        rank_zero_only(log.info)("Step %s: %s", steps, ", ".join(figures))

    def _say_of(self, what: str, batch_idx: int, batches: Any) -> None:
        if self._is_time():
            self._said = time.monotonic()
            rank_zero_only(log.info)("Batch %d of %d, %s split", batch_idx + 1, sum(batches), what)


SECONDS_BETWEEN_LINES = 30.0
