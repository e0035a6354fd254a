"""Whether the circuit's gradient vanishes: its variance over random starts (Appendix H)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from qpa_exp.generator.generator import Generator

log = logging.getLogger(__name__)


def variance(
    generator: Generator, objective: Callable[[], Tensor], starts: int
) -> Float[Tensor, " angles"]:
    """Return the variance of d objective / d theta over random starts, for every angle.

    Start k is that of the generator's own seed, plus k; under ``anchor`` it is anchored there.
    The generator is left as it was found.

    Args:
        generator: what ``objective`` reads.
        objective: a scalar.
        starts: how many, at least 2.
    """
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    gradients = []
    angles = generator.circuit.theta
    assert isinstance(angles, Tensor)
    trained = angles.requires_grad  # a search needs no gradient
    angles.requires_grad_(True)
    for k in range(starts):
        generator.restart(generator.config.seed + k)
        generator.zero_grad()
        objective().backward()
        assert angles.grad is not None
        gradients.append(angles.grad.detach().flatten().cpu().clone())
    generator.restart(generator.config.seed)
    generator.load_state_dict(before)
    generator.zero_grad()
    angles.requires_grad_(trained)
    return torch.stack(gradients).double().var(dim=0)


class GradientVariance(Callback):
    """Before the first step, measure it for the loss of the first batch, and log it.

    Logged are ``gradient_variance``, the mean over the angles, and that of every layer of the
    circuit, ``gradient_variance/layer_1`` and so on. Beside it stands ``expectation_variance``, of
    an objective that is known to have a barren plateau: the probability of |0...0>, a global
    observable of the same circuit (Cerezo et al. 2021). Training then goes on as without it.

    Attributes:
        starts: random starts, at least 2.
        figures: what was measured, for ``metrics.json``.
    """

    def __init__(self, starts: int) -> None:
        self.starts = starts
        self.figures: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless the run goes on from a checkpoint."""
        if trainer.global_step > 0:
            return
        module: Any = pl_module
        generator = module.model.generator
        assert generator is not None  # the config has been checked
        batch = module.task.look_up(next(iter(trainer.datamodule.train_dataloader())))  # type: ignore[attr-defined]
        batch = {name: value.to(module.device) for name, value in batch.items()}

        def loss() -> Tensor:
            torch.manual_seed(module.config.seed)  # the same dropout at every call
            module.model.refresh()
            return module.task.loss(module.model, batch)

        def expectation() -> Tensor:
            return generator.circuit()[..., 0].sum()

        module.train()
        with torch.random.fork_rng():
            found = variance(generator, loss, self.starts)
            alone = variance(generator, expectation, self.starts)
        theta = generator.circuit.theta
        assert isinstance(theta, Tensor)
        by_layer = found.view(theta.shape).movedim(-3, 0).flatten(1).mean(dim=1)
        self.figures = {
            "gradient_variance": float(found.mean()),
            "expectation_variance": float(alone.mean()),
        }
        layers = {f"gradient_variance/layer_{k}": float(v) for k, v in enumerate(by_layer, 1)}
        log.info(
            "Variance of the angles' gradient over %d starts: %.3g",
            self.starts, self.figures["gradient_variance"],
        )  # fmt: skip
        for logger in trainer.loggers:
            logger.log_metrics(self.figures | layers, step=0)

    def state_dict(self) -> dict[str, Any]:
        """Lightning keeps this in the checkpoint."""
        return {"figures": self.figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was measured before the run was interrupted."""
        self.figures = {str(k): float(v) for k, v in state_dict["figures"].items()}
