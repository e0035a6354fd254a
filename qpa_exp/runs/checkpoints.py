"""Which weights of a run are kept: its checkpoints, the best ones, and when it may stop."""

from __future__ import annotations

import io
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from qpa_exp.errors import InputError
from qpa_exp.files import whole_file
from qpa_exp.runs import directory, signals
from qpa_exp.runs.gradient_variance import GradientVariance
from qpa_exp.runs.module import AdapterModule
from qpa_exp.runs.progress import StepTimes
from qpa_exp.task import Metric


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
    def restore(self, module: AdapterModule) -> None:
        """Make the copy the module's weights."""
        for name, parameter in module.trained().items():
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


class Checkpoints(Checkpoint):
    """Writes a checkpoint every so many steps, at the last, and when a signal asks the run to end.

    The newest two are kept, and the older of them goes when the next is whole on disk: should the
    newest be damaged, the run goes on from the other. Nothing is remembered from one process to the
    next: which files there are is seen in the directory.

    Args:
        run_dir: of the run.
        every_n_steps: optimizer steps.
    """

    def __init__(self, run_dir: Path, every_n_steps: int) -> None:
        self._run_dir, self._every_n_steps = run_dir, every_n_steps
        self._step_before, self._saved = 0, 0
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
            signals.end(number, self._run_dir)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step: a batch need not end one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, or when the run is to end here.

        Where a validation comes next, both wait until it is over: Lightning does not make up for it
        when it goes on from a checkpoint of before.
        """
        if trainer.global_step == self._step_before:
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
            signals.end(number, self._run_dir)

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
