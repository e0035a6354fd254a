"""What Lightning trains: the loss of a batch, the optimizer, the perplexities."""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import get_scheduler

from qpa_exp.adapters import AdaptedModel
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.fast_head.short_way import ShortWay
from qpa_exp.lm.losses import TokenLosses, token_losses
from qpa_exp.runs.optimizers import make_optimizer
from qpa_exp.runs.stopwatch import Stopwatch

Batch = dict[str, Tensor]

_SCHEDULERS = {"linear": "linear", "constant": "constant_with_warmup"}


class Divergence(InputError):
    """Training produced a loss or a gradient that is not a finite number."""


class Perplexities(nn.Module):
    """Running means of the loss in nats, over real tokens and over all positions.

    Sums are kept in float64 and joined over the processes of a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text = MeanMetric().set_dtype(torch.float64)
        self.padded = MeanMetric().set_dtype(torch.float64)

    def update(self, losses: TokenLosses) -> None:
        """Count one batch."""
        self.text.update(losses.nats[losses.is_text])
        self.padded.update(losses.nats)

    def compute(self, prefix: str, layout: str) -> dict[str, float]:
        """``<prefix>loss``, ``<prefix>perplexity`` and, in lines, ``<prefix>perplexity_padded``."""
        loss = float(self.text.compute())
        values = {f"{prefix}loss": loss, f"{prefix}perplexity": _exp(loss)}
        if layout == "lines":
            values[f"{prefix}perplexity_padded"] = _exp(float(self.padded.compute()))
        return values

    def reset(self) -> None:
        """Start again."""
        self.text.reset()
        self.padded.reset()


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class AdapterModule(LightningModule):
    """Trains an adapted model: its generator, or under ``qpa=off`` the method's own tensors.

    Under ``layout=lines`` the training loss is the paper's, a mean over all positions, padding
    included. Each training step draws its random numbers (dropout, a random basis order) from a
    stream of its own, so a resumed run draws what an uninterrupted one would.

    Attributes:
        way: the backbone and the head one after the other, where only the head is adapted. None
            computes the whole model.
        stopwatch: where the time of the training steps goes. What is not split counts as
            ``backbone``: the whole model, where there is no shorter way.
    """

    model: AdaptedModel

    def __init__(self, model: AdaptedModel, config: Config, way: ShortWay | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.way = way
        self.stopwatch = Stopwatch()
        self._evaluations_before = 0
        self.validation = Perplexities()
        self.adapted = Perplexities()
        self.base = Perplexities()
        # What a checkpoint holds has fewer names than the model: the trained ones alone.
        self.strict_loading = False

    # --- steps --------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> TokenLosses:
        """The loss of every prediction in a batch of ``input_ids`` and ``attention_mask``.

        Where the batch has ``hidden``, what enters the head, the backbone is not computed.
        """
        return self._losses(batch, self._hidden(batch))[1]

    def _hidden(self, batch: Batch) -> Tensor | None:
        """What enters the head, the last position left out: (b, t - 1, k)."""
        if self.way is None or "hidden" in batch:
            return batch.get("hidden")
        with self._section("backbone"):
            hidden = self.way.backbone.hidden(batch["input_ids"], batch["attention_mask"])
        return hidden[:, :-1]

    def _losses(self, batch: Batch, hidden: Tensor | None) -> tuple[Tensor, TokenLosses]:
        """The loss to minimise, and that of every prediction."""
        ids, is_text = batch["input_ids"], batch["attention_mask"][:, 1:].to(torch.bool)
        padded = self.config.data.layout == "lines"
        if self.way is None or hidden is None:
            with self._section("backbone"):
                mask = batch["attention_mask"]
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                losses = token_losses(logits, ids, mask)
            return (losses.padded_mean if padded else losses.text_mean), losses
        self.model.refresh()
        counted = torch.ones_like(is_text) if padded else is_text
        weights = counted / counted.sum().clamp_min(1)
        with self._section("head"):
            found = self.way.head.loss(hidden, ids[:, 1:], weights)
        return found.loss, TokenLosses(found.nats, is_text)

    def objective(self, batch: Batch) -> Tensor:
        """The loss of one batch as training minimises it, with the same dropout at every call."""
        torch.manual_seed(self.config.seed)
        return self._losses(batch, self._hidden(batch))[0]

    def _section(self, name: str) -> AbstractContextManager[None]:
        return self.stopwatch.section(name, self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Give the step its own random stream."""
        torch.manual_seed(
            _step_seed(self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss that is minimised; a loss that is not finite ends the run."""
        self.stopwatch.on = True
        with self._section("generator"):
            self.model.begin_step()
        hidden = self._hidden(batch)
        self._step = (batch, hidden)
        loss, _ = self._losses(batch, hidden)
        self._require_finite(loss.detach(), "loss")
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    @torch.no_grad()
    def _loss_now(self) -> float:
        """The loss of the step's batch, for a search: each time with the same random numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.global_step)
            return float(self._losses(*self._step)[0])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning does it, timed."""
        with self._section("backbone" if self.way is None else "head"):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """The gradients of a step's batches go through the generator together, then the step."""

        def closure() -> Any:
            result = optimizer_closure()
            with self._section("generator"):
                self.model.end_step()
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def on_train_batch_end(self, *args: Any) -> None:  # noqa: ARG002
        """What follows, a validation or a test, is not timed."""
        self.stopwatch.on = False
        here = self.model.circuit_evaluations  # a tensor: asking its value would wait
        if here is not None:
            self.log("train/circuit_evaluations", 1.0 * (self._evaluations_before + here))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """A gradient that is not finite would spoil the weights: end the run before it does."""
        if self.trainer.precision == "16-mixed":  # the loss scaler steps over those by itself
            return
        for parameter in self.trained().values():
            if parameter.grad is not None:
                self._require_finite(parameter.grad, "gradient")

    def _require_finite(self, values: Tensor, what: str) -> None:
        if not torch.isfinite(values).all():
            raise Divergence(
                f"The {what} at step {self.global_step + 1} is not a finite number: training "
                f"stops there; optim.lr={self.config.optim.lr:g} may be too large."
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch of the validation split."""
        self.validation.update(self(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the validation split's loss and perplexities."""
        values = self.validation.compute("validation/", self.config.data.layout)
        self.validation.reset()
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch of the test split, for the adapted model and for the base model."""
        hidden = self._hidden(batch)
        self.adapted.update(self._losses(batch, hidden)[1])
        with self.model.disable_adapter():
            self.base.update(self._losses(batch, hidden)[1])

    def on_test_epoch_end(self) -> None:
        """Log the test split's loss and perplexities."""
        layout = self.config.data.layout
        values = self.adapted.compute("test/", layout) | self.base.compute("test/base_", layout)
        self.adapted.reset()
        self.base.reset()
        self.log_dict(values, sync_dist=True)

    # --- what is trained ----------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: the generator's, or the method's own."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def configure_optimizers(self) -> Any:
        """The optimizer, with a warmup and a decay over the steps that the run will take."""
        optim = self.config.optim
        optimizer = make_optimizer(self.trained(), optim, self._loss_now)
        scheduler = get_scheduler(
            _SCHEDULERS[optim.schedule],
            optimizer,
            num_warmup_steps=optim.warmup_steps,
            num_training_steps=self._total_steps(),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Lightning's own estimate would make the training loader here, before a resumed run's place
        in the data is restored, and the place would be lost.
        """
        trainer = self.trainer
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        most = per_epoch * (trainer.max_epochs or 1)
        return most if trainer.max_steps == -1 else min(most, trainer.max_steps)

    @property
    def circuit_evaluations(self) -> int | None:
        """Over all the parts of a resumed run, shifted circuits too; None without a generator."""
        here = self.model.circuit_evaluations
        return None if here is None else self._evaluations_before + int(here)

    # --- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained parameters; the language model is where it came from."""
        trained = self.trained()
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in trained
        }
        checkpoint["circuit_evaluations"] = self.circuit_evaluations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose parameters are not this run's."""
        own = {name: p.shape for name, p in self.trained().items()}
        if {name: value.shape for name, value in checkpoint["state_dict"].items()} != own:
            raise InputError("The checkpoint's trained parameters are not those of this run.")
        self._evaluations_before = checkpoint.get("circuit_evaluations") or 0


def _step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {batch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
