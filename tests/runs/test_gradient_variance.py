"""The callback that measures the gradient's variance, in a real run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpa_exp.config import Config, QPAConfig
from qpa_exp.generator.generator import Generator
from qpa_exp.runs import directory
from qpa_exp.runs.gradient_variance import variance
from qpa_exp.runs.train import run

Configure = Callable[..., Config]


@pytest.mark.parametrize("anchor", [True, False])
def test_the_generator_is_left_as_it_was_found(anchor: bool) -> None:
    generator = Generator(30, QPAConfig(n_mlp=4, n_layers=3, anchor=anchor, n_circuits=2))
    with torch.no_grad():
        generator.circuit.theta += 0.1
    before, norm = generator().detach(), generator.start_norm()
    variance(generator, lambda: generator().square().sum() + generator().sum(), starts=3)
    assert torch.equal(generator(), before)
    assert generator.start_norm() == norm
    assert all(p.grad is None for p in generator.parameters())


@pytest.mark.parametrize("anchor", ["true", pytest.param("false", marks=pytest.mark.long)])
def test_it_is_logged_and_the_run_goes_on_as_without_it(
    configure: Configure, tmp_path: Path, anchor: str
) -> None:
    short = ["trainer.max_steps=3", f"qpa.anchor={anchor}", "peft.lora_dropout=0.1"]
    run(configure(*short), tmp_path / "without")
    run(configure(*short, "trainer.gradient_variance_starts=3"), tmp_path / "with")
    _, (mean,) = directory.read_curve(tmp_path / "with", "gradient_variance")
    layers = [
        directory.read_curve(tmp_path / "with", f"gradient_variance/layer_{k}")[1][0]
        for k in range(1, 9)
    ]
    assert mean == pytest.approx(sum(layers) / 8, rel=1e-4)
    assert mean > 0
    one, other = (
        load_file(tmp_path / name / "generator" / "adapter_model.safetensors")
        for name in ("without", "with")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_circuits_that_were_evaluated_are_counted_and_logged(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure("trainer.max_steps=2", "qpa.gradient=parameter_shift", "qpa.n_mlp=2048")
    metrics = run(config, tmp_path / "run")
    angles = 8 * metrics["n_qubits"]
    assert metrics["circuit_evaluations"] >= 2 * (1 + 2 * angles)
    _, logged = directory.read_curve(tmp_path / "run", "train/circuit_evaluations")
    assert 2 * (1 + 2 * angles) <= logged[-1] <= metrics["circuit_evaluations"]
