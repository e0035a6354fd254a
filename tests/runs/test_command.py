"""``python -m qpa_exp`` as a person starts it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def start(
    arguments: list[str], cwd: Path, program: Sequence[str] = ("-m", "qpa_exp")
) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


KILLED_AT_STEP_10 = """
import os, signal, sys
from qpa_exp.__main__ import main
from qpa_exp.runs.module import AdapterModule

proper = AdapterModule.on_train_batch_start

def killing(self, batch, batch_idx):
    if self.global_step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    proper(self, batch, batch_idx)

AdapterModule.on_train_batch_start = killing
main(sys.argv[1:])
"""


@pytest.mark.parametrize("compiled", ["false", pytest.param("true", marks=pytest.mark.long)])
def test_a_killed_run_is_resumed_to_the_same_weights(
    overrides: list[str], tmp_path: Path, compiled: str
) -> None:
    arguments = [
        *overrides, "peft.lora_dropout=0.1", "hydra.job.name=qpa_exp", "trainer.max_steps=15",
        f"trainer.compile={compiled}",
    ]  # fmt: skip
    whole = start([*arguments, "hydra.run.dir=whole"], tmp_path)
    killed = start([*arguments, "hydra.run.dir=killed"], tmp_path, ["-c", KILLED_AT_STEP_10])
    assert finish(killed).returncode == -signal.SIGKILL
    assert list((tmp_path / "killed" / "checkpoints").glob("*.ckpt"))
    assert not (tmp_path / "killed" / "metrics.json").exists()

    resumed = finish(start(["resume=killed"], tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert finish(whole).returncode == 0

    files = [tmp_path / run / "generator" / "generator.safetensors" for run in ("whole", "killed")]
    expected, actual = map(load_file, files)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def generators(tmp_path: Path, *runs: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(tmp_path / run / "generator" / "generator.safetensors") for run in runs]


@pytest.mark.long
def test_two_processes_train_and_measure_what_one_does(
    overrides: list[str], tmp_path: Path
) -> None:
    """Each takes half of every batch; their gradients meet in the generator."""
    arguments = [*overrides, "trainer.max_steps=6", "trainer.accumulate_grad_batches=2"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.batch_size=2"]
    for more in (["hydra.run.dir=one"], [*ddp, "hydra.run.dir=two"]):
        done = finish(start([*arguments, *more, "trainer.progress_bar=false"], tmp_path))
        assert done.returncode == 0, done.stderr
    one, two = generators(tmp_path, "one", "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    measured = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two")]
    assert measured[0]["base_perplexity"] == pytest.approx(measured[1]["base_perplexity"], rel=1e-5)
    assert measured[0]["perplexity"] == pytest.approx(measured[1]["perplexity"], rel=1e-3)
    assert measured[0]["steps"] == measured[1]["steps"] == 6


def test_hydra_multirun_makes_one_run_for_each_value(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpa_exp.__main__ import main

    monkeypatch.chdir(tmp_path)
    main(["-m", *overrides, "trainer.max_steps=1", "qpa.n_mlp=32,64", "hydra.sweep.dir=sweep"])
    found = [json.loads(file.read_text()) for file in tmp_path.rglob("metrics.json")]
    assert sorted(metrics["n_chunks"] for metrics in found) == [1025, 2050]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("qpa.n_mpl=3", "did you mean qpa.n_mlp"),
        ("qpa.n_mlp=0", "qpa.n_mlp=0 is too small"),
        ("peft.target_modules=[lm_hed]", "the nearest are lm_head"),
        ("data.path=nowhere", "nowhere"),
        ("data.max_length=4096", "beyond the 64 positions"),
        ("model.name_or_path=someone/nothing", "model.name_or_path=<directory"),
        ("resume=.", "is not a run directory"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    overrides: list[str], tmp_path: Path, bad: str, says: str, refusal: Callable[..., str]
) -> None:
    from qpa_exp.__main__ import main

    arguments = [bad] if bad.startswith("resume") else [*overrides, bad]
    assert says in refusal(main, arguments, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_in_a_process_of_its_own_too(overrides: list[str], tmp_path: Path) -> None:
    done = finish(start([*overrides, "qpa.n_mlp=0"], tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: qpa.n_mlp=0 is too small")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.rglob("*")) == []
