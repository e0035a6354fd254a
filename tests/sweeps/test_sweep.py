"""Skipping, resuming, failing and sharing, with real runs in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from qpa_exp.errors import InputError
from qpa_exp.machine import keep_freed_memory
from qpa_exp.runs.directory import State, read_config, state_of, write_metrics
from qpa_exp.runs.module import AdapterModule
from qpa_exp.runs.train import resume
from qpa_exp.sweeps.runner import SweepFailed
from qpa_exp.sweeps.worker import LOCK, attempt, is_busy

Sweep = Callable[..., None]


def runs(place: Path = Path("runs")) -> list[Path]:
    return sorted(file.parent for file in place.glob("*/config.yaml"))


def times() -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in Path("runs").rglob("metrics.json")}


@pytest.mark.long
def test_a_sweep_says_its_cost_runs_and_is_not_run_again(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("qpa.n_mlp=64,128")
    said = capsys.readouterr().out
    assert "2 runs of 9," in said
    assert "trainable parameters" in said
    assert "[1/2] qpa.n_mlp=64 seed=2025: perplexity " in said
    assert "left" in said
    assert "All 2 runs are complete." in said
    before = times()
    assert len(before) == 2

    sweep("qpa.n_mlp=64,128,256", "logger=tensorboard")
    said = capsys.readouterr().out
    assert "2 runs complete already (same config, data and code): skipped." in said
    assert "[1/1] qpa.n_mlp=256 seed=2025: " in said
    assert before.items() <= times().items()
    assert len(runs()) == 3


@pytest.mark.long
def test_runs_are_shared_by_studies_and_keep_what_they_print(sweep: Sweep) -> None:
    sweep("seed=1,2")
    sweep("peft.r=4", "seed=2,3")  # the default rank: seed 2 is the same run
    assert len(runs()) == 3
    for run in runs():
        assert "Result on the test split" in (run / "output.log").read_text()


def test_one_failed_run_does_not_stop_the_rest_and_is_run_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proper = AdapterModule.training_step

    def failing(self: AdapterModule, batch: object, batch_idx: int) -> torch.Tensor:
        if self.config.seed == 2:
            raise RuntimeError("out of\nmemory")
        return proper(self, batch, batch_idx)

    monkeypatch.setattr(AdapterModule, "training_step", failing)
    with pytest.raises(SweepFailed, match="1 run of 3 failed"):
        sweep("seed=1,2,3")
    said = capsys.readouterr().out
    assert "[2/3] " in said
    assert "failed: RuntimeError: out of memory" in said
    assert "Traceback" not in said
    states = sorted(state_of(run) for run in runs())
    assert states == [State.complete, State.complete, State.failed]
    (failed,) = Path("runs").rglob("failed.json")
    assert "Traceback" in json.loads(failed.read_text())["traceback"]

    with pytest.raises(SweepFailed, match="1 run of 3 failed"):
        sweep("seed=1,2,3")
    assert "[1/1] seed=2: failed: RuntimeError" in capsys.readouterr().out

    monkeypatch.setattr(AdapterModule, "training_step", proper)
    sweep("seed=1,2,3")
    said = capsys.readouterr().out
    assert "2 runs complete already" in said
    assert "[1/1]" in said
    assert not list(Path("runs").rglob("failed.json"))


def test_a_run_that_diverged_is_not_repeated_but_is_told(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def poisoned(self: AdapterModule, batch: object, batch_idx: int) -> torch.Tensor:
        calls.append(batch_idx)
        self._require_finite(torch.tensor(float("nan")), "loss")
        raise AssertionError

    monkeypatch.setattr(AdapterModule, "training_step", poisoned)
    for _ in range(2):
        with pytest.raises(SweepFailed, match=r"1 run of 1 failed.*diverged are not run again"):
            sweep("seed=1")
        assert "is not a finite number" in capsys.readouterr().out
    assert len(calls) == 1


@pytest.mark.long
def test_an_interrupted_run_goes_on_from_its_checkpoint(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["trainer.max_steps=8", "seed=1"]
    sweep(*longer, "hydra.sweep.dir=whole")
    proper, seen = AdapterModule.training_step, []

    def crashing(self: AdapterModule, batch: object, batch_idx: int) -> torch.Tensor:
        seen.append(self.global_step)
        if len(seen) == 7:
            raise SystemExit(1)  # what Ctrl-C becomes
        return proper(self, batch, batch_idx)

    monkeypatch.setattr(AdapterModule, "training_step", crashing)
    with pytest.raises(SystemExit):
        sweep(*longer)
    (run,) = runs()
    assert state_of(run) is State.interrupted
    capsys.readouterr()
    sweep(*longer)
    assert "1 run interrupted: continued from the last checkpoint" in capsys.readouterr().out
    assert seen == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]
    (whole,) = runs(Path("whole"))
    assert run.name == whole.name
    results = [json.loads((place / "metrics.json").read_text()) for place in (run, whole)]
    assert results[0]["perplexity"] == results[1]["perplexity"]


def test_a_run_that_another_process_holds_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr("qpa_exp.runs.train.go_on", lambda place, own: made.append(place))
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / LOCK):
        assert is_busy(run)
        attempt(run)
        assert made == []
    assert not is_busy(run)
    attempt(run)
    assert made == [run]


@pytest.mark.parametrize(
    ("deaths", "states", "sizes"),
    [
        ({2: 1}, ["complete", "complete", "complete", "complete"], [4, 2, 1]),
        ({2: 9}, ["complete", "failed", "complete", "complete"], [4, 2, 1]),
        ({2: 9, 4: 1}, ["complete", "failed", "complete", "complete"], [4, 2, 1, 1]),
    ],
    ids=["once", "always", "two of them"],
)
def test_a_killed_run_is_made_once_more_alone_and_the_others_as_before(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    deaths: dict[int, int], states: list[str], sizes: list[int],
) -> None:  # fmt: skip
    """``deaths`` says how often the process of each seed's run is killed."""
    asked: list[int] = []

    def go_on(run: Path, own: bool) -> None:
        if deaths.get(seed := read_config(run).seed, 0):
            deaths[seed] -= 1
            raise KeyboardInterrupt
        write_metrics(run, {"status": "complete"})

    def attempt_all(run_dirs: list[Path], processes: int) -> None:
        asked.append(len(run_dirs))
        try:
            for run in sorted(run_dirs, key=lambda run: read_config(run).seed):
                attempt(run)
        except KeyboardInterrupt:
            raise BrokenProcessPool("a process ended") from None

    monkeypatch.setattr("qpa_exp.runs.train.go_on", go_on)
    monkeypatch.setattr("qpa_exp.sweeps.runner.attempt_all", attempt_all)
    fails = states.count("failed")
    with pytest.raises(SweepFailed, match="1 run of 4 failed") if fails else nullcontext():
        sweep("seed=1,2,3,4", "hydra.sweeper.side_by_side=2")
    found = {read_config(run).seed: state_of(run) for run in runs()}
    assert [str(found[seed]) for seed in sorted(found)] == states
    assert asked == sizes
    said = capsys.readouterr().out
    assert said.count("failed: seed=2: it ended without a result: its process was killed") == fails


def test_a_launcher_that_starts_no_run_is_one_sentence(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt_all(run_dirs: list[Path], processes: int) -> None:
        raise RuntimeError("no such partition\nat all")

    monkeypatch.setattr("qpa_exp.sweeps.runner.attempt_all", attempt_all)
    with pytest.raises(
        InputError, match="No run could be started: RuntimeError: no such partition"
    ):
        sweep("hydra.sweeper.side_by_side=2")


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library gives memory back by itself")
def test_a_run_leaves_its_process_as_small_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """joblib ends a worker that has grown by 300 MB, and another must import everything again."""

    def take(place: Path, own: bool) -> None:
        keep_freed_memory()
        taken = [torch.ones(2**18) for _ in range(400)]  # of a MiB each
        seen.append(process.memory_info().rss)
        del taken

    seen: list[int] = []
    process = psutil.Process()
    monkeypatch.setattr("qpa_exp.runs.train.go_on", take)
    before = process.memory_info().rss
    attempt(tmp_path / "run")
    assert seen[0] - before > 300 * 2**20
    assert process.memory_info().rss - before < 100 * 2**20


@pytest.mark.long
def test_a_damaged_checkpoint_is_told_with_the_run(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("seed=1")
    (run,) = runs()
    (run / "metrics.json").unlink()
    checkpoint = run / "checkpoints" / "step=00000099.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(SweepFailed):
        sweep("seed=1")
    assert "is damaged, cut short or no checkpoint" in capsys.readouterr().out
    checkpoint.unlink()
    sweep("seed=1")
    assert state_of(run) is State.complete


def test_a_run_of_a_sweep_can_be_continued_by_itself(sweep: Sweep) -> None:
    sweep("seed=1")
    (run,) = runs()
    assert resume(run)["status"] == "complete"


def test_only_a_plan_runs_nothing(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep("qpa.n_mlp=64,128", "hydra.sweeper.only_plan=true")
    assert "2 runs of 9," in capsys.readouterr().out
    assert not Path("runs").exists()


@pytest.mark.long
def test_the_runs_of_a_study_share_a_group_and_a_tag(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    sweep("seed=1", "hydra.sweeper.study=mine", "logger=wandb", "logger.tags=[yours]")
    (run,) = runs()
    logger = read_config(run).logger
    assert (logger.group, logger.tags) == ("mine", ["yours", "mine"])


def test_keys_are_checked_before_anything_runs(sweep: Sweep) -> None:
    with pytest.raises(InputError, match=r"qpa\.n_layers=0 is too small"):
        sweep("qpa.n_layers=2,0")
    assert not Path("runs").exists()


@pytest.mark.long
def test_hydras_own_sweeper_does_not_pass_one_run_off_as_another(sweep: Sweep) -> None:
    basic = ["hydra/sweeper=basic", "hydra.sweep.subdir=same"]
    sweep("seed=1", *basic)
    (run,) = runs()
    assert state_of(run) is State.complete
    sweep("seed=1", *basic)
    with pytest.raises(InputError, match="holds a run of another config"):
        sweep("seed=2", *basic)
    with pytest.raises(InputError, match=r"data\.path=missing does not exist\. \(runs/other\)"):
        sweep("seed=3", "data.path=missing", *basic[:1], "hydra.sweep.subdir=other")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("hydra/sweeper=basic sweep=fig2", "sweep=fig2 needs hydra/sweeper=study"),
        ("hydra/sweeper=basic scale=tiny", "scale=tiny needs hydra/sweeper=study"),
        ("seed=glob(*)", "seed=glob(*) gives no value"),
    ],
)
def test_what_a_sweeper_cannot_do_is_one_sentence(sweep: Sweep, given: str, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        sweep(*given.split())


def test_a_pattern_chooses_options_of_a_group(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("qpa=glob([t*,p*])", "hydra.sweeper.only_plan=true")
    said = capsys.readouterr().out
    assert "qpa=paper" in said
    assert "qpa=tuned" in said


def test_what_has_no_effect_is_as_it_was_given_last(sweep: Sweep, tmp_path: Path) -> None:
    """So a run that failed for such a key is mended by another value."""
    (tmp_path / "a_file").write_text("")
    cached = ["seed=1", "data.cache=disk"]
    with pytest.raises(SweepFailed):
        sweep(*cached, "data.cache_dir=a_file")
    sweep(*cached, "data.cache_dir=cache", "trainer.checkpoint_every_n_steps=7")
    (run,) = runs()
    assert state_of(run) is State.complete
    assert read_config(run).trainer.checkpoint_every_n_steps == 7
    sweep(*cached, "data.cache_dir=cache", "trainer.checkpoint_every_n_steps=9")
    assert read_config(run).trainer.checkpoint_every_n_steps == 7  # it is complete


@pytest.mark.parametrize(
    "given",
    [["hydra.sweeper.side_by_side=0"], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"]],
)
def test_no_processes_are_too_few(sweep: Sweep, given: list[str]) -> None:
    with pytest.raises(InputError, match=r"=0 is too small: give at least 1"):
        sweep("seed=1", *given)
