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


NOT_ASKED_FOR = 'import sys; sys.modules["bitsandbytes"] = None'
"""PEFT imports it where it is, for seconds."""

KILLS = (
    NOT_ASKED_FOR
    + """
import contextlib, json, os, random, signal, threading, time
import numpy, torch
import qpa_exp.runs.train
with contextlib.suppress(ImportError):  # whose folder may be deleted
    import qpa_exp.fast_head
from qpa_exp.__main__ import main
from pathlib import Path

first, last = map(int, sys.argv[1:3])
command = sys.argv[3:]

def run(arguments, cache, seconds=None):
    pid = os.fork()  # what takes long is to import
    if pid == 0:
        os.environ["QPA_EXP_CACHE"] = cache
        try:
            main(arguments)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    began = time.monotonic()
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
        timer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if seconds is not None:
        timer.cancel()
    return status, time.monotonic() - began

status, seconds = run([*command, "hydra.run.dir=whole"], "cache_whole")
assert status == 0
for seed in range(first, last):
    place, cache = f"killed_{seed}", f"cache_{seed}"
    anew = [*command, f"hydra.run.dir={place}"]
    arguments = anew
    moments = random.Random(seed)
    for again in range(2):  # the second kill meets a run that is going on
        status, _ = run(arguments, cache, moments.uniform(0, seconds))
        assert status in (0, -signal.SIGKILL), status
        arguments = [f"resume={place}"] if Path(place, "config.yaml").exists() else anew
    status, _ = run(arguments, cache)
    assert status == 0, status
"""
)


@pytest.mark.parametrize(("first", "last"), [(0, 1), pytest.param(1, 15, marks=pytest.mark.long)])
def test_a_run_that_is_killed_at_any_moment_is_resumed_to_the_same_weights(
    overrides: list[str], tmp_path: Path, first: int, last: int
) -> None:
    """Twice each: at start-up, as the cache is filled, as a checkpoint is written, in the test."""
    arguments = [
        *overrides, "peft.lora_dropout=0.1", "trainer.max_steps=12",
        "trainer.checkpoint_every_n_steps=1", "trainer.validate_every_n_steps=5",
    ]  # fmt: skip
    done = finish(start([str(first), str(last), *arguments], tmp_path, ["-c", KILLS]))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    for seed in range(first, last):
        killed = tmp_path / f"killed_{seed}"
        expected, actual = generators(tmp_path, "whole", killed.name)
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
        assert {path.name for path in killed.iterdir()} == names
        assert list(killed.rglob("*.part")) == []
        assert len(list((killed / "checkpoints").iterdir())) == 2


@pytest.mark.long
def test_a_compiled_run_that_is_killed_is_resumed_to_the_same_weights(
    overrides: list[str], tmp_path: Path
) -> None:
    arguments = [*overrides, "peft.lora_dropout=0.1", "trainer.max_steps=15"]
    killing = ["-c", SIGNALLED.format(step=10, signal="SIGKILL")]
    compiled = [*arguments, "trainer.compile=true"]
    killed = finish(start([*compiled, "hydra.run.dir=killed"], tmp_path, killing))
    assert killed.returncode == -signal.SIGKILL
    for arguments in (["resume=killed"], [*compiled, "hydra.run.dir=whole"]):
        done = finish(start(arguments, tmp_path))
        assert done.returncode == 0, done.stderr
    expected, actual = generators(tmp_path, "whole", "killed")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


SIGNALLED = (
    NOT_ASKED_FOR
    + """
import os, signal
from qpa_exp.__main__ import main
from qpa_exp.cli import run_command
from qpa_exp.runs.module import AdapterModule

proper = AdapterModule.on_train_batch_start

def signalling(self, batch, batch_idx):
    if self.global_step == {step}:
        os.kill(os.getpid(), signal.{signal})
    proper(self, batch, batch_idx)

AdapterModule.on_train_batch_start = signalling
run_command(main)
"""
)


def test_a_job_of_slurm_is_started_again_and_goes_on(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from qpa_exp.__main__ import main

    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    job = {"NTASKS": "1", "JOB_NAME": "night", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in (job | {"ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": "3", "JOB_ID": "20"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    where = "hydra.run.dir=runs/${now:%H_%M_%S_%f}"
    command = [*overrides, "trainer.max_steps=5", where]

    program = ["-c", SIGNALLED.format(step=1, signal="SIGUSR1")]
    stopped = finish(start(command, tmp_path, program))
    assert stopped.returncode == 0, stopped.stderr
    assert "Stopped by SIGUSR1" in stopped.stderr
    assert "(job 17_3 is started again" in stopped.stderr
    assert asked.read_text() == "requeue 17_3\n"
    (run,) = (tmp_path / "runs").iterdir()
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step=00000002.ckpt"]

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main(command)
    assert (run / "metrics.json").exists()
    with caplog.at_level("INFO"):
        main(command)
    assert "is complete" in caplog.text
    assert list((tmp_path / "runs").iterdir()) == [run]
    main([*command, "seed=3"])  # another run of the same job
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("imported", ["qpa_exp.errors", "hydra"])
def test_a_signal_before_there_is_a_run_ends_in_one_word(
    overrides: list[str], tmp_path: Path, imported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    process = start([*overrides, "hydra.run.dir=run"], tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.split("|")[-1].strip() == imported:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=100)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, said) == (130, ["interrupted"])
    assert list(tmp_path.iterdir()) == []


def generators(tmp_path: Path, *runs: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(tmp_path / run / "generator" / "adapter_model.safetensors") for run in runs]


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


@pytest.mark.long
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
