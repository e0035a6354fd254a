"""What Lightning calls while a run trains: clock and bars, the weights it keeps, checkpoints."""

from __future__ import annotations

import io
import logging
import math
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ProgressBar, RichProgressBar
from pytorch_lightning.callbacks.timer import Timer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from qpa_exp.errors import InputError
from qpa_exp.files import whole_file
from qpa_exp.runs import directory, signals
from qpa_exp.runs.gradient_variance import GradientVariance
from qpa_exp.task import Metric

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


class BestWeights(Callback):
    """Keeps a copy of the trained weights that were best on the validation split.

    A candidate is every validation after the first step: before it nothing has been trained. Of
    equal ones the earliest is kept, and what is not a number never wins. The copy is part of every
    checkpoint, so a run that is continued ends with the same one, bit for bit; training itself goes
    on from the last weights.

    Args:
        metric: which ranks the task's runs, and tells which of two values is better.

    Attributes:
        step: the optimizer step of the copy; None while no validation has given a number.
        value: the metric on the validation split there.
        validated: the step of the latest validation; 0 before the first.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._weights: dict[str, Tensor] = {}
        self.step: int | None = None
        self.value = math.nan
        self.validated = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights, on every process alike, where they are the best so far."""
        if trainer.global_step == 0:
            return
        self.validated = trainer.global_step
        found = trainer.callback_metrics.get(f"validation/{self._metric.name}")
        value = math.nan if found is None else float(found)
        if self._wins(value):
            trained = pl_module.trained()  # type: ignore[operator]
            self._weights = {k: p.detach().to("cpu", copy=True) for k, p in trained.items()}
            self.step, self.value = trainer.global_step, value

    def _wins(self, value: float) -> bool:
        if self.step is None or math.isnan(value):
            return not math.isnan(value)
        return value < self.value if self._metric.smaller_is_better else value > self.value

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Set parameters, by their names, to the copy."""
        for name, parameter in parameters.items():
            parameter.copy_(self._weights[name])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a copy from a checkpoint that is not of these weights."""
        own = {k: (p.shape, p.dtype) for k, p in pl_module.trained().items()}  # type: ignore[operator]
        saved = {k: (value.shape, value.dtype) for k, value in self._weights.items()}
        if self.step is not None and saved != own:
            raise InputError("The checkpoint's best weights are not of this run's parameters.")

    def state_dict(self) -> dict[str, Any]:
        """Lightning keeps this in the checkpoint."""
        kept = {"step": self.step, "value": self.value, "weights": self._weights}
        return kept | {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was best before the run was interrupted."""
        step, weights = state_dict["step"], dict(state_dict["weights"])
        self.step = None if step is None else int(step)
        self.value, self.validated = float(state_dict["value"]), int(state_dict["validated"])
        self._weights = {str(name): torch.as_tensor(value) for name, value in weights.items()}


class Patience(EarlyStopping):
    """Lightning's early stopping, after validations alone, and exact where a run is continued.

    How long it waits is what the config says, not what a checkpoint does.

    Args:
        metric: which ranks the task's runs.
        patience: validations in a row without a better one.
        min_delta: by how much a better one differs.
    """

    def __init__(self, metric: Metric, patience: int, min_delta: float) -> None:
        super().__init__(
            f"validation/{metric.name}",
            min_delta,
            patience,
            mode="min" if metric.smaller_is_better else "max",
            check_on_train_epoch_end=False,
        )

    @property
    def state_key(self) -> str:
        """Its name in a checkpoint."""
        return type(self).__qualname__

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take no step more in a run that had stopped when it was interrupted."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what it had seen before the run was interrupted."""
        self.wait_count = int(state_dict["wait_count"])
        self.best_score = torch.as_tensor(state_dict["best_score"])


class EndsOfSteps(Callback):
    """Knows after each batch whether it has ended an optimizer step."""

    _step_before = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step: a batch need not end one."""
        self._step_before = trainer.global_step

    def _has_ended_a_step(self, trainer: Trainer) -> bool:
        return trainer.global_step > self._step_before


class Validations(EndsOfSteps):
    """Has Lightning validate after every so many optimizer steps.

    It counts batches by itself, and the last step of an epoch may have fewer of them: a validation
    would come in the middle of a step, whose gradients no checkpoint holds.

    Args:
        every_n_steps: optimizer steps.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether a run that goes on has just validated."""
        self._set(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Tell Lightning whether a validation comes next."""
        self._set(trainer, ends_a_step=self._has_ended_a_step(trainer))

    def _set(self, trainer: Trainer, *, ends_a_step: bool = True) -> None:
        due = ends_a_step and trainer.global_step % self._every_n_steps == 0
        batches = trainer.fit_loop.total_batch_idx + 1
        trainer.val_check_batch = 1 if due else batches + 1  # divides the batches so far, or not


class OwnFiles(TorchCheckpointIO):
    """How Lightning writes, reads and removes checkpoints: whole, as plain data, and only ours.

    Args:
        run_dir: the run whose checkpoints they are.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._run_dir = run_dir

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write beside the place, and rename: a full disk or a kill leaves what was there."""
        content = io.BytesIO()  # torch hides why a file cannot be written
        torch.save(checkpoint, content)
        with whole_file(Path(path)) as file:
            file.write(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Tensors and plain values alone; of the callbacks' states those that hold no paths.

        Lightning's own checkpoint callback, for one, would keep paths there, and remove them later.
        """
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        kept = {kind.__qualname__ for kind in (StepTimes, BestWeights, Patience, GradientVariance)}
        _check_counts(loaded["loops"], "loops")
        _check_counts(loaded.get("circuit_evaluations") or 0, "circuit_evaluations")
        states = loaded["callbacks"]
        loaded["callbacks"] = {key: states[key] for key in states.keys() & kept}
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Remove one of this run's own checkpoints; any other path is left alone."""
        if Path(path) in directory.checkpoints(self._run_dir):
            Path(path).unlink()


def _check_counts(value: Any, place: str) -> None:
    """Refuse what is no count: Lightning's loops read much of their state late."""
    if isinstance(value, dict | list) and (value or isinstance(value, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_counts(item, f"{place}.{key}")
    elif not (isinstance(value, int) and 0 <= value < 2**63):
        raise ValueError(f"{place} holds {value!r:.100} where a count is to be")


class Checkpoints(EndsOfSteps, Checkpoint):
    """Writes a checkpoint every so many steps, at the last, and when a signal asks the run to end.

    The newest two are kept, and the older of them goes when the next is whole on disk: should the
    newest be damaged, the run goes on from the other. Nothing is remembered from one process to the
    next: which files there are is seen in the directory.

    Args:
        run_dir: of the run.
        every_n_steps: optimizer steps.
        devices: that the run trains on.
    """

    def __init__(self, run_dir: Path, every_n_steps: int, devices: int) -> None:
        self._run_dir, self._every_n_steps, self._devices = run_dir, every_n_steps, devices
        self._saved = 0
        self._signal: tuple[int, float] | None = None
        self._ended = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal wait for the step from now on; after training Lightning takes this back."""
        self._saved = trainer.global_step
        signals.install(self._note, over=(signal.SIGTERM,))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signals.leave_at_second(number, self._signal[1])
            return
        self._signal = (number, time.monotonic())
        if self._ended:
            signals.end(number, self._run_dir, self._devices)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, or when the run is to end here, where a step has ended.

        Where a validation comes next, which is after a step too, both wait until it is over:
        Lightning does not make up for it when it goes on from a checkpoint of before.
        """
        if not self._has_ended_a_step(trainer):
            return  # gradients are being added up, which no checkpoint holds
        assert trainer.val_check_batch is not None
        whole_run = trainer.check_val_every_n_epoch is None
        batches = 1 + (trainer.fit_loop.total_batch_idx if whole_run else batch_idx)
        if batches % trainer.val_check_batch != 0:
            self._save_or_end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what has waited for the validation."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_or_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step there is nothing more to wait for."""
        self._save_or_end(trainer)
        self._ended = True

    def _save_or_end(self, trainer: Trainer) -> None:
        last = trainer.should_stop or trainer.global_step >= trainer.estimated_stepping_batches
        if last or trainer.global_step % self._every_n_steps == 0:
            self._save(trainer)
        asked = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if asked:
            self._save(trainer)
            number, _ = self._signal or (signal.SIGTERM, 0.0)  # another process was asked
            signals.end(number, self._run_dir, self._devices)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved:
            return
        trainer.save_checkpoint(directory.checkpoint(self._run_dir, step))
        self._saved = step
        if trainer.is_global_zero:
            files = directory.checkpoints(self._run_dir)
            until_now = [file for file in files if directory.step_of(file) <= step]
            for file in until_now[:-_CHECKPOINTS_KEPT]:
                trainer.strategy.remove_checkpoint(file)


_CHECKPOINTS_KEPT = 2
