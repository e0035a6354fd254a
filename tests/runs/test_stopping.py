"""A run that is asked to end, or is not alone: nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch
from saved_weights import weights

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory, signals
from qpa_exp.runs.callbacks import OwnFiles
from qpa_exp.runs.module import AdapterModule
from qpa_exp.runs.train import resume, run

Configure = Callable[..., Config]
CrashesAt = Callable[[int], AbstractContextManager[None]]

SHORT = (
    "peft.lora_dropout=0.2",
    "trainer.max_steps=4",
    "trainer.checkpoint_every_n_steps=2",
    "trainer.limit_eval_batches=1",
    "trainer.validate_every_n_steps=2",
)


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(configure: Configure, _made: Path) -> Path:
    """The run that nobody interrupts, made once."""
    if not (_made / "metrics.json").exists():
        run(configure(*SHORT), _made)
    return _made


@pytest.mark.parametrize(
    ("asked", "during", "at_step", "saved"),
    [
        ("SIGTERM", "training_step", 0, [1]),
        ("SIGINT", "training_step", 1, [2]),  # before a validation, which is still made
        ("SIGTERM", "validation_step", 2, [2]),
        ("SIGHUP", "validation_step", 0, []),  # the loss before the first step: no step to save
        ("SIGTERM", "test_step", 4, [2, 4]),
    ],
)
def test_a_signal_ends_a_run_without_losing_a_step(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    whole: Path,
    asked: str,
    during: str,
    at_step: int,
    saved: list[int],
) -> None:
    number = getattr(signal, asked)
    proper = getattr(AdapterModule, during)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}

    def signalled(self: AdapterModule, batch: object, batch_idx: int) -> object:
        if self.global_step == at_step:
            os.kill(os.getpid(), number)
        return proper(self, batch, batch_idx)

    place = tmp_path / "it's a run"
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(AdapterModule, during, signalled)
        with pytest.raises(SystemExit) as ended:
            run(configure(*SHORT), place)
    assert ended.value.code == 128 + number
    said = capfd.readouterr().err
    resuming = f"python -m qpa_exp resume={shlex.quote(str(place))}"
    assert said == f"Stopped by {asked}. To continue: {resuming}\n"
    assert {each: signal.getsignal(each) for each in before} == before
    assert [directory.step_of(file) for file in directory.checkpoints(place)] == saved
    assert not (place / "metrics.json").exists()

    resumed = resume(place)
    expected, actual = weights(whole), weights(place)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    curves = [directory.read_curve(each, "validation/loss") for each in (whole, place)]
    assert curves[0] == curves[1]
    assert resumed["perplexity"] == directory.read_metrics(whole)["perplexity"]


def test_a_run_that_goes_on_after_a_validation_has_all_its_curves(
    configure: Configure, tmp_path: Path, crashes_at: CrashesAt, whole: Path
) -> None:
    with crashes_at(3):
        run(configure(*SHORT), tmp_path)
    resume(tmp_path)
    for name in ("validation/loss", "train/loss"):
        assert directory.read_curve(tmp_path, name) == directory.read_curve(whole, name)


def test_nothing_is_saved_or_ended_in_the_middle_of_a_step(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of 14 batches, 4 to a step, ends with a step of 2."""
    steps = ["trainer.accumulate_grad_batches=4", "trainer.validate_every_n_steps=1"]
    given = [*steps, "optim.schedule=constant", "trainer.limit_eval_batches=1"]
    metrics = run(configure(*given), tmp_path / "whole")
    assert (metrics["steps"], metrics["epochs"]) == (8, 2)
    curve = directory.read_curve(tmp_path / "whole", "validation/loss")
    assert len(curve[0]) == 8

    proper = AdapterModule.training_step

    def signalled(self: AdapterModule, batch: object, batch_idx: int) -> object:
        if (self.current_epoch, batch_idx) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return proper(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterModule, "training_step", signalled)
        with pytest.raises(SystemExit):
            run(configure(*given), tmp_path / "signalled")
    resume(tmp_path / "signalled")

    never_better = ["trainer.patience=4", "trainer.min_delta=1e6"]
    stopped = run(configure(*given, *never_better), tmp_path / "stopped")
    assert (stopped["steps"], stopped["epochs"]) == (5, pytest.approx(18 / 14))
    resume(tmp_path / "stopped", configure(*given))

    expected = weights(tmp_path / "whole")
    for place in (tmp_path / "signalled", tmp_path / "stopped"):
        actual = weights(place)
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
        assert directory.read_curve(place, "validation/loss") == curve


# --- damage, and enemies ----------------------------------------------------------------------


def interrupted(configure: Configure, place: Path, patch: pytest.MonkeyPatch) -> list[Path]:
    """A run that was stopped after step 3 with checkpoints of steps 2 and 3."""
    proper = AdapterModule.training_step

    def signalled(self: AdapterModule, batch: object, batch_idx: int) -> object:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return proper(self, batch, batch_idx)

    with patch.context() as here:
        here.setattr(AdapterModule, "training_step", signalled)
        with pytest.raises(SystemExit):
            run(configure(*SHORT), place)
    return directory.checkpoints(place)


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    whole: Path,
) -> None:
    _, newer = interrupted(configure, tmp_path, monkeypatch)
    newer.write_bytes(newer.read_bytes()[:-100])
    resume(tmp_path)
    assert f"{newer} is damaged" in caplog.text
    expected, actual = weights(whole), weights(tmp_path)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    kept = [directory.step_of(file) for file in directory.checkpoints(tmp_path)]
    assert kept == [3, 4]  # and no more of those from before


def test_a_checkpoint_from_an_enemy_removes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's callback would restore these paths, and remove them when it saves the next."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("x")
    place = tmp_path / "run"
    for checkpoint in interrupted(configure, place, monkeypatch):
        saved = torch.load(checkpoint, weights_only=True)
        path = f"{place}/checkpoints/../../victim"
        state = dict.fromkeys(("best_model_path", "last_model_path", "kth_best_model_path"), path)
        state |= {"dirpath": str(place / "checkpoints"), "best_k_models": {path: 0.0}}
        for key in [*saved["callbacks"], "ModelCheckpoint{'monitor': None}", "Checkpoints"]:
            saved["callbacks"][key] = saved["callbacks"].get(key, {}) | state
        torch.save(saved, checkpoint)
    resume(place)
    assert (victim / "thesis.txt").read_text() == "x"


def test_only_own_checkpoints_are_removed(tmp_path: Path) -> None:
    files = OwnFiles(tmp_path)
    own = directory.checkpoint(tmp_path, 12)
    others = [
        own.with_name("step=12.ckpt"),
        own.with_name("best.ckpt"),
        tmp_path / "step=00000012.ckpt",
        tmp_path / "model.safetensors",
    ]
    linked, folder = own.with_name("step=00000013.ckpt"), own.with_name("step=00000014.ckpt")
    for file in (own, *others):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    linked.symlink_to(others[-1])
    folder.mkdir()
    for path in (*others, linked, folder, tmp_path, tmp_path / "none", f"{own.parent}/../{own}"):
        files.remove_checkpoint(path)
    assert all(path.exists() for path in (own, *others, linked, folder))
    files.remove_checkpoint(str(own))
    assert not own.exists()


@pytest.mark.parametrize("name", sorted(directory.WRITTEN))
def test_a_link_in_a_run_directory_is_not_followed(
    configure: Configure, tmp_path: Path, name: str
) -> None:
    place, victim = tmp_path / "run", tmp_path / "victim"
    directory.claim(place, configure())
    if name == "config.yaml":
        (place / name).rename(victim)
    (place / name).symlink_to(victim)
    before = victim.exists()
    with pytest.raises(InputError, match="is a link"):
        resume(place)
    assert victim.exists() == before


def test_one_process_at_a_time_is_at_a_run(configure: Configure, tmp_path: Path) -> None:
    directory.claim(tmp_path, configure())
    with directory.held(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="Another process is at the run"):
            resume(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before


def test_who_only_looks_does_not_turn_a_run_away(tmp_path: Path) -> None:
    looking, looked = threading.Event(), threading.Event()

    def look() -> None:
        with directory.lock(tmp_path):
            looking.set()
            looked.wait(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with directory.held(tmp_path):
        pass
    thread.join()


def test_a_file_that_a_kill_left_half_written_is_gone(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    own = [tmp_path / ".metrics.json.17.part", tmp_path / "checkpoints" / ".a.ckpt.17.part"]
    others = [tmp_path / "notes.part", tmp_path / "checkpoints" / ".part"]
    for file in (*own, *others):
        file.write_text("x")
    with directory.held(tmp_path):
        assert not any(file.exists() for file in own)
    assert all(file.exists() for file in others)


def test_signals_that_come_together_are_one(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel and the shell both send SIGHUP where a terminal is closed."""
    proper = AdapterModule.training_step

    def signalled(self: AdapterModule, batch: object, batch_idx: int) -> object:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return proper(self, batch, batch_idx)

    monkeypatch.setattr(AdapterModule, "training_step", signalled)
    with pytest.raises(SystemExit) as ended:
        run(configure(*SHORT), tmp_path / "run")
    assert ended.value.code == 128 + signal.SIGHUP
    assert [directory.step_of(file) for file in directory.checkpoints(tmp_path / "run")] == [1]


def test_what_others_ignore_or_handle_is_left_to_them() -> None:
    others = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in others.items()}
    try:
        with signals.at_once(Path("run")):
            assert {number: signal.getsignal(number) for number in others} == others
            assert isinstance(signal.getsignal(signal.SIGINT), signals.AtOnce)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("place", ["finalizer", "weak reference"])
def test_a_signal_where_python_drops_what_is_raised_is_not_lost(
    place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Dropped:
        def __del__(self) -> None:
            if place == "finalizer":
                os.kill(os.getpid(), signal.SIGTERM)

    def dropped() -> None:
        with signals.at_once(Path("run")):
            thing = Dropped()
            kill = partial(os.kill, os.getpid(), signal.SIGTERM)
            watch = weakref.ref(thing, lambda _: None if place == "finalizer" else kill())
            del thing
            threading.Event().wait(10)
            pytest.fail(f"It goes on: {watch}")

    # pytest has one of its own.
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with pytest.raises(SystemExit) as left:
        dropped()
    assert left.value.code == 143
    assert capfd.readouterr().err.count("Stopped by SIGTERM") == 1
