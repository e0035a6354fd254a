"""Does the circuit's gradient vanish? Its variance over random starts (Appendix H)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from qpa_exp.circuits.ansatz import UNTRAINED
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.generator import Generator

if TYPE_CHECKING:
    from qpa_exp.runs.module import AdapterModule

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Refuse what has no gradient whose variance could be measured.

    Raises:
        InputError: a config without a circuit that is trained.
    """
    if config.qpa.variant == "off":
        raise InputError("qpa=off has no circuit whose gradient could be measured.")
    if config.qpa.ansatz in UNTRAINED:
        raise InputError(
            f"qpa.ansatz={config.qpa.ansatz} has no angles to train, so their gradient has no "
            "variance: give an ansatz that is trained, such as ry."
        )


def variance(
    generator: Generator, objective: Callable[[], Tensor], starts: int
) -> Float[Tensor, " angles"]:
    """The variance of d objective / d theta over random starts, for every angle.

    Start k is that of the generator's own seed, plus k; under ``anchor`` it is anchored there.
    The generator is left as it was found.

    Args:
        generator: what ``objective`` reads.
        objective: a scalar.
        starts: how many, at least 2.
    """
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    gradients = torch.stack(list(_gradients(generator, objective, starts)))
    generator.restart(generator.config.seed)
    generator.load_state_dict(before)
    generator.zero_grad()
    return gradients.double().var(dim=0)


def _gradients(
    generator: Generator, objective: Callable[[], Tensor], starts: int
) -> Iterator[Float[Tensor, " angles"]]:
    for k in range(starts):
        generator.restart(generator.config.seed + k)
        generator.zero_grad()
        objective().backward()
        theta = generator.circuit.theta
        assert isinstance(theta, Tensor)
        assert theta.grad is not None
        yield theta.grad.detach().flatten().cpu().clone()


class GradientVariance(Callback):
    """Before the first step, measure it for the loss of the first batch, and log it.

    Logged are ``gradient_variance``, the mean over the angles, and that of every layer of the
    circuit, ``gradient_variance/layer_1`` and so on. Training then goes on as without it.

    Attributes:
        starts: random starts, at least 2.
    """

    def __init__(self, starts: int) -> None:
        self.starts = starts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless the run goes on from a checkpoint."""
        module: AdapterModule = pl_module  # type: ignore[assignment]
        if trainer.global_step > 0:
            return
        generator = module.model.generator
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        batch = {name: value.to(module.device) for name, value in next(iter(loader)).items()}
        module.train()
        with torch.random.fork_rng():
            found = variance(generator, lambda: module.objective(batch), self.starts)
            alone = variance(generator, lambda: generator.circuit()[..., 0].sum(), self.starts)
        theta = generator.circuit.theta
        assert isinstance(theta, torch.Tensor)
        by_layer = found.view(theta.shape).movedim(-3, 0).flatten(1).mean(dim=1)
        figures = {f"gradient_variance/layer_{k}": float(v) for k, v in enumerate(by_layer, 1)}
        figures["gradient_variance"] = float(found.mean())
        figures["expectation_variance"] = float(alone.mean())
        log.info(
            "Variance of the angles' gradient over %d starts: %.3g",
            self.starts, figures["gradient_variance"],
        )  # fmt: skip
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=0)
