"""The variance of the circuit's gradient over random starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qpa_exp.config import Config, QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator import Generator
from qpa_exp.runs.gradient_variance import variance
from qpa_exp.sweeps.gradients import measure

PLAIN = QPAConfig(n_mlp=4, n_layers=3, anchor=False)


def objective(generator: Generator) -> torch.Tensor:
    return generator().square().sum()


def test_it_is_the_variance_over_starts_averaged_over_the_angles() -> None:
    generator = Generator(30, PLAIN)
    found = variance(generator, lambda: objective(generator), starts=5).mean()
    gradients = []
    for k in range(5):
        other = Generator(30, dataclasses.replace(PLAIN, seed=PLAIN.seed + k))
        objective(other).backward()
        gradients.append(other.circuit.theta.grad.flatten().double().numpy())
    assert found == pytest.approx(np.var(gradients, axis=0, ddof=1).mean(), rel=1e-6)


def test_a_global_observable_has_a_barren_plateau() -> None:
    found = []
    for n_qubits in (2, 4, 6, 8):
        config = dataclasses.replace(PLAIN, n_mlp=1, n_layers=8)
        generator = Generator(2**n_qubits, config)
        alone = variance(generator, lambda g=generator: g.circuit()[..., 0].sum(), 40)
        found.append(float(alone.mean()))
    ratios = np.divide(found[1:], found[:-1])
    assert (ratios < 0.6).all()  # falls exponentially: by much at every two qubits


def test_a_measurement_is_a_runs_metrics(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure("qpa=paper", "trainer.max_steps=3")
    measure(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "complete"
    assert metrics["starts"] == 3
    assert metrics["gradient_variance"] > 0
    assert metrics["expectation_variance"] > 0
    before = metrics["gradient_variance"]
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been stopped
    measure(config, tmp_path / "run")
    again = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert again["gradient_variance"] == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["qpa=off"], "qpa=off has no circuit"),
        (["qpa.ansatz=frozen"], "qpa.ansatz=frozen has no angles to train"),
        (["qpa=paper", "trainer.max_steps=1"], "give 2 or more"),
    ],
)
def test_what_has_no_variance_is_refused(
    configure: Callable[..., Config], tmp_path: Path, change: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        measure(configure(*change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
