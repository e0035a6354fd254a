"""AdamW, and the searches without gradients that take turns with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qpa_exp.__main__ import run_sweep
from qpa_exp.config import Config, OptimConfig
from qpa_exp.errors import InputError
from qpa_exp.runs.alternating_search import AlternatingSearch
from qpa_exp.runs.module import make_optimizer
from qpa_exp.runs.optimizers import OPTIMIZERS
from qpa_exp.runs.train import resume, run

CrashesAt = Callable[[int], AbstractContextManager[None]]

SEARCHES = [name for name in OPTIMIZERS if OPTIMIZERS[name].search is not None]
ANGLES, MAPPING = "generator.circuit.theta", "generator.mapping.0.weight"


class Bowl:
    """A loss whose least value, 0, is at 0.5 for the angles and at -0.5 for the mapping."""

    def __init__(self, n: int = 4) -> None:
        self.theta = nn.Parameter(torch.zeros(1, 1, n))
        self.mapping = nn.Parameter(torch.zeros(2, 3))
        self.evaluations = 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return {ANGLES: self.theta, MAPPING: self.mapping}

    def value(self) -> torch.Tensor:
        return (self.theta - 0.5).square().sum() + (self.mapping + 0.5).square().sum()

    def loss(self) -> float:
        self.evaluations += 1
        return self.value().item()

    def closure(self) -> torch.Tensor:
        for parameter in self.trained.values():
            parameter.grad = None
        loss = self.value()
        loss.backward()
        return loss


def optim(name: str, **fields: Any) -> OptimConfig:
    config = OptimConfig(name=name, lr=0.05, theta_lr=0.1, search_every_n_steps=1, weight_decay=0.0)
    return dataclasses.replace(config, **fields)


@pytest.mark.parametrize("over", ["theta", "all"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_the_least_loss(name: str, over: str) -> None:
    torch.manual_seed(0)
    bowl = Bowl()
    start = bowl.loss()
    config = optim(name, over=over, theta_lr=0.05, max_evaluations=40)
    optimizer = make_optimizer(bowl.trained, config, bowl.loss)
    for _ in range(60):
        optimizer.step(bowl.closure)
    assert bowl.loss() < 0.02 * start


@pytest.mark.parametrize("name", SEARCHES)
def test_over_theta_each_moves_its_own(name: str) -> None:
    bowl = Bowl(n=3)
    optimizer = make_optimizer(bowl.trained, optim(name, search_every_n_steps=3), bowl.loss)
    moved = []
    for _ in range(4):
        before, mapping = bowl.theta.detach().clone(), bowl.mapping.detach().clone()
        optimizer.step(bowl.closure)
        moved.append(not torch.equal(bowl.theta, before))
        assert not torch.equal(bowl.mapping, mapping)
    assert moved == [True, False, False, True]


@pytest.mark.parametrize("over", ["theta", "all"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_angles_of_a_search_have_no_gradient(name: str, over: str) -> None:
    bowl = Bowl()
    make_optimizer(bowl.trained, optim(name, over=over), bowl.loss).step(bowl.closure)
    assert bowl.theta.grad is None
    assert bowl.mapping.grad is not None


@pytest.mark.slow
def test_a_search_on_measurements_evaluates_no_gradient(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QPA_EXP_CACHE", str(tmp_path / "cache"))
    given = ["qpa.backend=qiskit", "qpa.shots=20", "qpa.n_mlp=8192", "qpa.n_layers=1"]
    with pytest.raises(InputError, match="needs a simulation"):
        run(configure(*given), tmp_path / "slopes")
    config = configure("optim=spsa", *given, "trainer.max_steps=2", "optim.search_every_n_steps=9")
    run(config, tmp_path / "run")
    (end,) = (tmp_path / "run").glob("metrics.json")
    assert json.loads(end.read_text())["circuit_evaluations"] < 20


@pytest.mark.parametrize(("name", "evaluations"), [("cobyla", 9), ("spsa", 6)])
def test_a_search_takes_as_many_evaluations_as_it_may(name: str, evaluations: int) -> None:
    bowl = Bowl()
    make_optimizer(bowl.trained, optim(name, max_evaluations=evaluations), bowl.loss).step(
        bowl.closure
    )
    assert bowl.evaluations == evaluations


def test_the_angles_may_have_a_rate_of_their_own() -> None:
    bowl = Bowl()
    groups = make_optimizer(bowl.trained, optim("adamw"), bowl.loss).param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.1), (1, 0.05)]
    groups = make_optimizer(bowl.trained, optim("adamw", theta_lr=None), bowl.loss).param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 0.05)]


def test_a_scheduler_sets_the_rates_of_both() -> None:
    bowl = Bowl()
    optimizer = make_optimizer(bowl.trained, optim("spsa"), bowl.loss)
    assert isinstance(optimizer, AlternatingSearch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step(bowl.closure)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.adamw.param_groups[0]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("trained", "fields", "says"),
    [
        ({MAPPING: 6}, {}, "has none to train: give optim=adamw"),
        ({ANGLES: 1001}, {}, "would search 1,001 parameters, and takes at most 1,000"),
        ({ANGLES: 4, MAPPING: 2000}, {"over": "all"}, "would search 2,004 parameters"),
        ({ANGLES: 9}, {"max_evaluations": 10}, "max_evaluations=10 is too small for the 9"),
    ],
)
def test_what_cannot_be_searched_is_refused(trained: Any, fields: Any, says: str) -> None:
    parameters = {name: nn.Parameter(torch.zeros(n)) for name, n in trained.items()}
    with pytest.raises(InputError, match=says):
        make_optimizer(parameters, optim("cobyla", **fields), lambda: 0.0)


@pytest.mark.parametrize(
    "given",
    [
        ["optim=cobyla", "qpa=off"],
        ["optim=spsa", "qpa=off"],
        ["optim=cobyla", "qpa.ansatz=frozen"],
        ["optim=cobyla", "optim.max_evaluations=3"],
        ["optim=nelder_mead", "optim.over=all"],
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_written(
    configure: Callable[..., Config],
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="optim"):
        run(configure(*given), tmp_path / "run")
    with pytest.raises(InputError, match="optim"):
        run_sweep([*overrides, *given, "hydra.sweep.dir=runs", "hydra.sweeper.only_plan=true"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spsa", pytest.param("cobyla", marks=pytest.mark.long)])
def test_a_resumed_search_ends_with_the_same_weights(
    configure: Callable[..., Config], tmp_path: Path, crashes_at: CrashesAt, name: str
) -> None:
    few = ["optim.search_every_n_steps=3", "qpa.n_mlp=4096", "qpa.n_layers=2", "qpa.seed=1"]
    config = configure(f"optim={name}", *few, "trainer.max_steps=7", "qpa.scale=1")
    run(config, tmp_path / "whole")

    with crashes_at(5):
        run(config, tmp_path / "crashed")
    resume(tmp_path / "crashed")

    whole, other = (
        load_file(tmp_path / which / "generator" / "adapter_model.safetensors")
        for which in ("whole", "crashed")
    )
    assert all(torch.equal(whole[key], other[key]) for key in whole)
