"""Figure 10: does the circuit's gradient vanish with qubits or depth? No training, only starts.

For each random start the gradient of the language model's loss on one batch is taken with respect
to the angles, through the mapping model and the PEFT method (Appendix H). Beside it stands an
objective that is known to have a barren plateau: the probability of |0...0>, a global observable of
the same circuit (Cerezo et al. 2021).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from qpa_exp.adapters.counts import count
from qpa_exp.circuits.versions import versions as circuit_versions
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.lm.losses import token_losses
from qpa_exp.runs import directory, gradient_variance, results
from qpa_exp.runs.gradient_variance import variance
from qpa_exp.runs.train import load

DEFAULT_STARTS = 100


def measure(config: Config, run_dir: Path) -> None:
    """Write the variances for this config as the run's ``metrics.json``.

    ``trainer.max_steps`` is the number of random starts; 100 where it is not limited.

    Raises:
        InputError: a config without a circuit to train, or one start.
    """
    check(config)
    loaded = load(config, "off")
    module, data = loaded.module, loaded.data
    assert module.model.generator is not None
    if not (run_dir / directory.CONFIG).exists():
        directory.claim(run_dir, config)
    model = module.model.to(_device(config)).train()
    batch = {k: v.to(model.device) for k, v in next(iter(data.train_dataloader())).items()}
    starts = DEFAULT_STARTS if config.trainer.max_steps == -1 else config.trainer.max_steps

    def loss() -> Tensor:
        logits = model(**batch, use_cache=False).logits
        return token_losses(logits, batch["input_ids"], batch["attention_mask"]).text_mean

    generator = module.model.generator
    through_model = variance(generator, loss, starts).mean()
    alone = variance(generator, lambda: generator.circuit()[..., 0].sum(), starts).mean()
    metrics = {
        "status": "complete",
        "gradient_variance": float(through_model),
        "expectation_variance": float(alone),
        "starts": starts,
        **dataclasses.asdict(count(model)),
        "seed": config.seed,
        "versions": results.versions() | circuit_versions(config.qpa),
        "data_sha256": data.corpus.sha256,
    }
    results.write_metrics(run_dir, metrics)


def check(config: Config) -> None:
    """Refuse what has no variance.

    Raises:
        InputError: a config without a circuit to train, or with one start.
    """
    gradient_variance.check(config)
    if config.trainer.max_steps == 1:
        raise InputError("trainer.max_steps=1 is one start, which has no variance: give 2 or more.")


def _device(config: Config) -> torch.device:
    gpu = config.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
