"""A search by Optuna, with real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock

from qpa_exp.errors import InputError
from qpa_exp.runs.directory import last_of_curve
from qpa_exp.runs.module import AdapterModule
from qpa_exp.sweeps.runner import SweepFailed

Sweep = Callable[..., None]
AddStudy = Callable[[dict[str, Any]], None]
RECORD = Path("outputs/studies/tiny/small_search")


@pytest.fixture(autouse=True)
def _small_search(add_study: AddStudy) -> None:
    space = {"qpa.n_layers": [1, 2, 4], "peft.r": [1, 2]}
    node = {
        "study": "small_search", "figures": [{"kind": "pareto"}], "points": {"tiny": {}},
        "parts": [{"peft": "lora", "qpa": "tuned"}],
        "search": {"n_trials": 3, "space": space},
    }  # fmt: skip
    add_study(node)


def trials() -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{RECORD / 'optuna.db'}"
    searches = optuna.get_all_study_names(storage)
    of_each = (optuna.load_study(study_name=name, storage=storage).trials for name in searches)
    return [trial for of_one in of_each for trial in of_one]


@pytest.mark.long
def test_both_are_minimised_and_a_search_goes_on(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("sweep=small_search")
    done = trials()
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 3
    for trial in done:
        runs = Path("runs").glob("*/metrics.json")
        measured = {
            (
                last_of_curve(run.parent, "validation/perplexity"),
                json.loads(run.read_text())["trainable_params"],
            )
            for run in runs
        }
        assert tuple(trial.values) in measured
    assert "on the front: " in capsys.readouterr().out

    sweep("sweep=small_search")
    assert "3 of 3 trials are done" in capsys.readouterr().out
    sweep("sweep=small_search", "hydra.sweeper.search.n_trials=4")
    assert len(trials()) == 4

    sweep("sweep=small_search", "optim.lr=0.05", "hydra.sweeper.search.n_trials=1")
    assert "0 of 1 trials are done" in capsys.readouterr().out
    sweep("sweep=small_search", "hydra.sweeper.search.n_trials=4")
    assert "4 of 4 trials are done" in capsys.readouterr().out
    assert len(trials()) == 5
    listed = json.loads((RECORD / "sweep.json").read_text())["runs"]
    assert {(RECORD / run["path"]).resolve() for run in listed} == {
        path.parent.resolve()
        for path in Path("runs").glob("*/metrics.json")
        if "lr: 0.05" not in (path.parent / "config.yaml").read_text()
    }


@pytest.mark.long
def test_a_trial_that_was_stopped_is_run_again_as_it_was(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    proper = AdapterModule.training_step

    def stopped(*args: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(AdapterModule, "training_step", stopped)
    with pytest.raises(SystemExit):
        sweep("sweep=small_search")
    (begun,) = trials()
    assert begun.state.name == "RUNNING"
    monkeypatch.setattr(AdapterModule, "training_step", proper)
    sweep("sweep=small_search", "hydra.sweeper.search.n_trials=1")
    states = {trial.state.name: trial.params for trial in trials()}
    assert states == {"FAIL": begun.params, "COMPLETE": begun.params}
    assert len(list(Path("runs").glob("*/config.yaml"))) == 1


@pytest.mark.long
def test_a_trial_that_fails_is_told_and_does_not_stop_the_rest(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proper, seen = AdapterModule.training_step, []

    def failing(self: AdapterModule, batch: object, batch_idx: int) -> object:
        seen.append(self.config)
        if seen[0] == self.config:
            raise RuntimeError("out of memory")
        return proper(self, batch, batch_idx)

    monkeypatch.setattr(AdapterModule, "training_step", failing)
    with pytest.raises(SweepFailed, match="trials failed"):
        sweep("sweep=small_search")
    assert "RuntimeError: out of memory" in capsys.readouterr().out
    assert [trial.state.name for trial in trials()].count("COMPLETE") >= 1


@pytest.mark.parametrize(
    ("more", "says"),
    [(["seed=1,2"], "describes 2 runs"), (["qpa.scale=-1"], "qpa.scale=-1.0 is out of range")],
)
def test_a_mistake_is_refused_before_any_trial(sweep: Sweep, more: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sweep("sweep=small_search", *more)
    assert not RECORD.exists()


def test_two_searches_at_once_are_refused(sweep: Sweep) -> None:
    RECORD.mkdir(parents=True)
    with (
        FileLock(RECORD / ".optuna.db.lock"),
        pytest.raises(InputError, match="searched by another process"),
    ):
        sweep("sweep=small_search")
