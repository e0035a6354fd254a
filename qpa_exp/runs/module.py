"""What Lightning trains: a task on an adapted model, its optimizer, and the means it measures."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import get_scheduler

from qpa_exp.adapters.qpa_model import AdaptedModel
from qpa_exp.config import Config, OptimConfig, TrainerConfig
from qpa_exp.data.datamodule import Batch, TextSize
from qpa_exp.errors import InputError
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.optimizers import OPTIMIZERS
from qpa_exp.task import Measured, Task

log = logging.getLogger(__name__)


class Divergence(InputError):
    """A loss or a gradient that is not a finite number."""


class Means(Metric):
    """The running means that a task's figures are made from.

    Each is a sum over a count, in float64 and over all processes; what is no number stays none.
    """

    sums: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        zeros = torch.zeros(len(task.measures), 2, dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    def update(self, measured: Measured) -> None:
        """Count one batch."""
        for place, name in enumerate(self.task.measures):
            self.sums[place] += torch.stack([each.double() for each in measured[name]])

    def compute(self) -> dict[str, float]:
        """Return each mean; NaN of nothing."""
        total, count = self.sums.T
        return dict(zip(self.task.measures, (total / count).tolist(), strict=True))

    def take(self, prefix: str, size: TextSize | None) -> dict[str, float]:
        """Return the task's figures under this prefix; the means begin again.

        Args:
            prefix: of their names.
            size: of the split's text, where it is known.
        """
        values = self.compute()
        self.reset()
        figures = self.task.figures(values)
        if size is not None:
            figures |= self.task.figures_of_text(values, size)
        return {prefix + name: value for name, value in figures.items()}


class AdapterModule(LightningModule):
    """Trains what an adapted model trains, towards a task.

    Each training step draws its random numbers (dropout, a random basis order) from a stream of
    its own, so a resumed run draws what an uninterrupted one would.

    Attributes:
        has_begun: whether this process has made a training step: what a checkpoint holds was used.
        tests_last: whether a test is of the last weights where others are kept: its figures then
            have ``last_`` before their names, and the base model, tested with the others, is left
            out.
    """

    def __init__(
        self, model: AdaptedModel, task: Task, config: Config, stopwatch: Stopwatch
    ) -> None:
        super().__init__()
        self.model, self.task, self.config, self.stopwatch = model, task, config, stopwatch
        self._evaluations_before = 0
        self._batch: Batch | None = None
        self.has_begun = self.tests_last = False
        self.validation, self.adapted, self.base = Means(task), Means(task), Means(task)
        # What a checkpoint holds has fewer names than the model: the trained ones alone.
        self.strict_loading = False

    def on_train_start(self) -> None:
        """Everything has been restored by now.

        A run that is trained longer than it was to be follows the schedule of its new length; under
        any other these rates are those of the checkpoint.
        """
        scheduler: Any = self.lr_schedulers()
        groups = scheduler.optimizer.param_groups
        before = [group["lr"] for group in groups]
        factors = (factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas)
        for group, rate, factor in zip(groups, scheduler.base_lrs, factors, strict=True):
            group["lr"] = rate * factor
        if (now := [group["lr"] for group in groups]) != before:
            rank_zero_only(log.info)(
                "optim.schedule=%s now ends at step %d: the learning rate goes on from %s; it was "
                "%s.",
                self.config.optim.schedule, self.total_steps(), _rates(now), _rates(before),
            )  # fmt: skip

    # --- a training step ----------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Let the task add what it knows of these examples already."""
        return self.task.look_up(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Give the step its own random stream."""
        torch.manual_seed(
            _step_seed(self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss that is minimised; a loss that is not finite ends the run."""
        self.stopwatch.on = True
        with self.stopwatch.section("generator", self.device):
            self.model.begin_step()
        self._batch = batch
        loss = self.task.loss(self.model, batch)
        self._require_finite(loss.detach(), "loss")
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward as Lightning does, timed."""
        with self.stopwatch.section(self.task.slope_section, self.device):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Take the gradients of a step's batches through the generator together, then step."""

        def closure() -> Any:
            result = optimizer_closure()
            with self.stopwatch.section("generator", self.device):
                self.model.end_step()
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """End the run before a gradient that is not finite spoils the weights.

        Its Euclidean norm is logged as it is before it is clipped.
        """
        gradients = [p.grad for p in self.trained().values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.trainer.precision != "16-mixed":  # the loss scaler steps over those by itself
            self._require_finite(norm, "gradient")
        self.log("train/grad_norm", norm)

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock: what follows, a validation or a test, is not timed."""
        self.stopwatch.on, self.has_begun = False, True
        here = self.model.circuit_evaluations
        if here is not None:  # a tensor: asking its value would wait
            self.log("train/circuit_evaluations", 1.0 * (self._evaluations_before + here))

    def _require_finite(self, values: Tensor, what: str) -> None:
        if not torch.isfinite(values).all():
            raise Divergence(
                f"The {what} at step {self.global_step + 1} is not a finite number: training "
                f"stops there; optim.lr={self.config.optim.lr:g} may be too large."
            )

    @torch.no_grad()
    def _loss_now(self) -> float:
        """Return the loss of the step's batch, for a search: each time with the same random
        numbers.
        """
        assert self._batch is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.global_step)
            return float(self.task.loss(self.model, self._batch))

    # --- measuring ----------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the validation split."""
        self.validation.update(self.task.measure(self.model, batch))

    def on_validation_epoch_end(self) -> None:
        """Log the validation split's figures."""
        values = self.validation.take("validation/", self._size("validation"))
        self.log_dict(values, prog_bar=True, sync_dist=True)
        _require_numbers(values)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the test split, for the adapted model and for the base model."""
        self.adapted.update(self.task.measure(self.model, batch))
        if self.tests_last:
            return
        with self.model.disable_adapter():
            self.base.update(self.task.measure(self.model, batch))

    def on_test_epoch_end(self) -> None:
        """Log the test split's figures."""
        size = self._size("test")
        if self.tests_last:  # no result of the run: they may be anything
            self.log_dict(self.adapted.take("test/last_", size), sync_dist=True)
            return
        values = self.adapted.take("test/", size) | self.base.take("test/base_", size)
        self.log_dict(values, sync_dist=True)
        _require_numbers(values)

    def _size(self, role: str) -> TextSize | None:
        size: TextSize | None = self.trainer.datamodule.examples[role].size  # type: ignore[attr-defined]
        return size

    # --- what is trained ----------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name: the generator's, or the method's own."""
        return {f"model.{name}": p for name, p in self.model.trained_parameters().items()}

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with a warmup and a decay over the steps that the run will take."""
        optim, steps = self.config.optim, self.total_steps()
        optimizer = make_optimizer(self.trained(), optim, self._loss_now)
        warmup = optim.warmup_steps
        if optim.warmup_ratio is not None:
            warmup = math.ceil(optim.warmup_ratio * steps)
        scheduler = get_scheduler(
            # transformers' own "constant" has no warmup.
            "constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def total_steps(self) -> int:
        """Optimizer steps of the whole run, where it does not stop early.

        Lightning's own estimate would make the training loader here, before a resumed run's place
        in the data is restored, and the place would be lost.
        """
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        return total_steps(self.config.trainer, batches)

    @property
    def circuit_evaluations(self) -> int | None:
        """Over all the parts of a resumed run, shifted circuits too; None without a generator."""
        here = self.model.circuit_evaluations
        return None if here is None else self._evaluations_before + int(here)

    # --- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained parameters; the language model is where it came from."""
        checkpoint["state_dict"] = {name: p.detach() for name, p in self.trained().items()}
        checkpoint["circuit_evaluations"] = self.circuit_evaluations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the trained parameters; refuse a checkpoint whose parameters are not this run's."""
        own, saved = self.trained(), checkpoint["state_dict"]
        if {name: p.shape for name, p in own.items()} != {k: v.shape for k, v in saved.items()}:
            raise InputError("The checkpoint's trained parameters are not those of this run.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])
        self._evaluations_before = int(checkpoint.get("circuit_evaluations") or 0)


def total_steps(config: TrainerConfig, batches: int) -> int:
    """Optimizer steps of a run with so many batches an epoch."""
    most = math.ceil(batches / config.accumulate_grad_batches) * config.max_epochs
    return most if config.max_steps == -1 else min(most, config.max_steps)


def epochs(config: TrainerConfig, batches: int, steps: int) -> float:
    """Epochs that so many optimizer steps took; the last step of an epoch may have fewer batches.

    Examples:
        >>> epochs(TrainerConfig(accumulate_grad_batches=4), batches=17, steps=5)
        1.0
    """
    whole, more = divmod(steps, math.ceil(batches / config.accumulate_grad_batches))
    return (whole * batches + more * config.accumulate_grad_batches) / batches


def _rates(rates: list[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)


def make_optimizer(
    trained: dict[str, nn.Parameter], config: OptimConfig, loss: Callable[[], float]
) -> torch.optim.Optimizer:
    """Return the configured optimizer of these parameters, given by name.

    Args:
        trained: angles have the circuit in their names.
        config: which optimizer, and its rates.
        loss: of the step's batch with the parameters as they are now, without a gradient.

    Raises:
        InputError: a search over angles that the model does not have, or over too much.
    """
    angles = [p for name, p in trained.items() if "generator.circuit." in name]
    others = [p for name, p in trained.items() if "generator.circuit." not in name]
    if OPTIMIZERS[config.name].search is not None:
        from qpa_exp.runs.alternating_search import AlternatingSearch

        for angle in angles:  # nobody would read their gradient, and it may cost many circuits
            angle.requires_grad_(False)
        searched, stepped = (angles, others) if config.over == "theta" else ([*angles, *others], [])
        return AlternatingSearch(searched, stepped, config, loss)
    groups: list[dict[str, Any]] = [{"params": [*angles, *others]}]
    if config.theta_lr is not None:
        groups = [
            {"params": angles, "lr": config.theta_lr, "name": "theta"},
            {"params": others, "name": "others"},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **config.adamw)


def _require_numbers(values: dict[str, float]) -> None:
    """Refuse figures that are infinite or none: they are no result of a split."""
    for name, value in values.items():
        if not math.isfinite(value):
            what = "not a number" if math.isnan(value) else "infinite"
            raise Divergence(
                f"{name} is {what}: the model's output on that split has a NaN or is out of all "
                "bounds, or the split has nothing to predict."
            )


def _step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {batch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
