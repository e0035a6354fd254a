"""Figure 10: does the circuit's gradient vanish with qubits or depth? No training, only starts.

For each random start the gradient of the language model's loss on one batch is taken with respect
to the angles, through the mapping model and the PEFT method (Appendix H). Beside it stands an
objective that is known to have a barren plateau: the probability of |0...0>, a global observable of
the same circuit (Cerezo et al. 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.adapters import QPAModel
from qpa_exp.adapters.build import count
from qpa_exp.config import CacheMode, Config, QPAConfig, Variant
from qpa_exp.errors import InputError
from qpa_exp.generator import Generator
from qpa_exp.lm.losses import token_losses
from qpa_exp.training import directory, results
from qpa_exp.training.run import load

DEFAULT_STARTS = 100


def measure(config: Config, run_dir: Path) -> None:
    """Write the variances for this config as the run's ``metrics.json``.

    ``trainer.max_steps`` is the number of random starts; 100 where it is not limited.

    Raises:
        InputError: a config without a circuit to train, or with an anchor.
    """
    check(config)
    loaded = load(config, CacheMode.off)
    module, data = loaded.module, loaded.data
    assert isinstance(module.model, QPAModel)
    if not (run_dir / directory.CONFIG).exists():
        directory.claim(run_dir, config)
    model = module.model.to(_device(config)).train()
    batch = {k: v.to(model.device) for k, v in next(iter(data.train_dataloader())).items()}
    starts = DEFAULT_STARTS if config.trainer.max_steps == -1 else config.trainer.max_steps

    def loss() -> Tensor:
        logits = model(**batch, use_cache=False).logits
        return token_losses(logits, batch["input_ids"], batch["attention_mask"]).text_mean

    generator = model.generator
    through_model = variance(generator, config.qpa, loss, starts)
    alone = variance(generator, config.qpa, lambda: generator.circuit()[..., 0].sum(), starts)
    metrics = {
        "status": "complete",
        "gradient_variance": through_model,
        "expectation_variance": alone,
        "starts": starts,
        **dataclasses.asdict(count(model)),
        "seed": config.seed,
        "versions": results.versions(),
        "data_sha256": data.corpus.sha256,
    }
    results.write_metrics(run_dir, metrics)


def variance(
    generator: Generator, config: QPAConfig, objective: Callable[[], Tensor], starts: int
) -> float:
    """The variance of the gradient of one angle over random starts, averaged over the angles.

    Args:
        generator: what ``objective`` reads; its parameters are overwritten.
        config: of the generator; start k has its seed, plus k.
        objective: a scalar.
        starts: how many, at least 2.
    """
    gradients = torch.stack(list(_gradients(generator, config, objective, starts)))
    return float(gradients.double().var(dim=0).mean())


def _gradients(
    generator: Generator, config: QPAConfig, objective: Callable[[], Tensor], starts: int
) -> Iterator[Float[Tensor, " angles"]]:
    m = generator.chunking.m
    for k in range(starts):
        start = Generator(m, dataclasses.replace(config, seed=config.seed + k))
        generator.load_state_dict(start.state_dict())
        generator.zero_grad()
        objective().backward()
        theta = generator.circuit.theta
        assert isinstance(theta, Tensor)
        assert theta.grad is not None
        yield theta.grad.detach().flatten().cpu().clone()


def check(config: Config) -> None:
    """Refuse what has no variance.

    Raises:
        InputError: a config without a circuit to train, with an anchor, or with one start.
    """
    if config.qpa.variant == Variant.off:
        raise InputError("qpa=off has no circuit whose gradient could be measured.")
    if config.qpa.anchor:
        raise InputError(
            "qpa.anchor=true ties the generator to one start: measure the gradient's variance with "
            "qpa.anchor=false, as qpa=paper has it."
        )
    if config.trainer.max_steps == 1:
        raise InputError("trainer.max_steps=1 is one start, which has no variance: give 2 or more.")


def _device(config: Config) -> torch.device:
    gpu = config.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
