"""Where curves go besides the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qpa_exp.config import Config
from qpa_exp.runs import directory
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.module import Divergence
from qpa_exp.runs.train import resume, run

Configure = Callable[..., Config]
CrashesAt = Callable[[int], AbstractContextManager[None]]


def test_tensorboard_shows_the_numbers_of_the_csv(configure: Configure, tmp_path: Path) -> None:
    schedule = ("optim.schedule=cosine", "optim.warmup_ratio=0.5")
    metrics = run(configure("logger=tensorboard", "trainer.max_steps=4", *schedule), tmp_path)
    events = tmp_path / "tensorboard" / "version_0"
    accumulated = EventAccumulator(str(events)).Reload()
    for name in ("train/loss", "train/grad_norm", "lr-AdamW/theta", "lr-AdamW/others"):
        seen = {event.step: event.value for event in accumulated.Scalars(name)}
        steps, values = directory.read_curve(tmp_path, name)
        assert seen == pytest.approx(dict(zip(steps, values, strict=True)))
        assert steps == [0, 1, 2, 3]
    assert values == pytest.approx([0, 2.5e-3, 5e-3, 2.5e-3])
    assert min(directory.read_curve(tmp_path, "train/grad_norm")[1]) > 0
    tags = accumulated.Tags()["scalars"]
    assert "hp_metric" not in tags
    (shown,) = accumulated.Scalars("perplexity")
    assert shown.value == pytest.approx(metrics["perplexity"])


def test_a_resumed_run_is_one_curve_in_tensorboard(
    configure: Configure, tmp_path: Path, crashes_at: CrashesAt
) -> None:
    with crashes_at(2):
        run(configure("logger=tensorboard", "trainer.max_steps=4"), tmp_path)
    resume(tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    points = EventAccumulator(str(events)).Reload().Scalars("train/loss")
    assert {point.step for point in points} == {0, 1, 2, 3}


@pytest.fixture
def wandb_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``wandb_with(WANDB_MODE="offline")``: W&B as it starts under these variables, with a key."""
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "settings").mkdir()
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def start(**variables: str) -> None:
        for name, value in ({"WANDB_API_KEY": "0" * 40} | variables).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()

    yield start
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.slow
def test_wandb_knows_a_run_and_how_it_ended_offline_where_there_is_no_key(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    crashes_at: CrashesAt,
    wandb_with: Callable[..., None],
) -> None:
    ended: list[SimpleNamespace] = []
    proper = wandb.Run.finish

    def finish(self: wandb.Run, exit_code: int | None = None, **more: object) -> None:
        seen = {"config": dict(self.config), "summary": dict(self.summary)}
        ended.append(SimpleNamespace(name=self.name, status=exit_code, **seen))
        proper(self, exit_code, **more)

    monkeypatch.setattr(wandb.Run, "finish", finish)
    wandb_with(WANDB_API_KEY="")
    with caplog.at_level("INFO", logger="qpa_exp"):
        metrics = run(configure("logger=wandb", "trainer.max_steps=2"), tmp_path / "run")
    assert metrics["status"] == "complete"
    (recorded,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert f"wandb sync {recorded.parent}" in caplog.text
    assert b"test/base_perplexity" in recorded.read_bytes()

    with crashes_at(1):
        run(configure("logger=wandb", "logger.run_name=mine"), tmp_path / "crashed")
    with pytest.raises(Divergence):
        run(configure("logger=wandb", "optim.lr=100", "qpa.scale=1e6"), tmp_path / "diverged")
    good, crashed, diverged = ended
    assert good.name == "model0 lora tuned text seed=2025 (run)"
    assert good.config["versions"] == {k: metrics["versions"][k] for k in good.config["versions"]}
    assert set(good.summary["time_split"].keys()) == set(metrics["time_split"])
    assert good.summary["perplexity"] == metrics["perplexity"]
    assert (crashed.name, crashed.summary["status"]) == ("mine", "failed")
    assert (diverged.summary["status"], good.status) == ("diverged", 0)
    assert crashed.status == diverged.status == 1


class _Service:
    """Stands for Lightning's logger: what it was asked for, and whether W&B can be reached."""

    asked: ClassVar[list[dict[str, Any]]] = []
    reached = True

    def __init__(self, **given: Any) -> None:
        self.asked.append(given)

    @property
    def experiment(self) -> None:
        if not self.reached:
            left = Path(self.asked[-1]["save_dir"]) / "wandb" / "run-20260103_000000-never"
            left.mkdir(parents=True)
            (left / "run-never.wandb").touch()
            raise ConnectionError("no answer")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[_Service]:
    monkeypatch.setattr(_Service, "asked", [])
    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", _Service)
    return _Service


SWITCHED_OFF = {
    "WANDB_MODE=offline": "offline", "WANDB_MODE=dryrun": "offline",
    "WANDB_MODE=disabled": "disabled", "WANDB_DISABLED=true": "disabled",
    "WANDB_API_KEY=": "offline",
}  # fmt: skip


@pytest.mark.parametrize("variable", [*SWITCHED_OFF, "wandb offline"])
def test_wandb_is_not_asked_where_the_user_switched_it_off(
    configure: Configure,
    tmp_path: Path,
    wandb_with: Callable[..., None],
    service: type[_Service],
    variable: str,
) -> None:
    if variable in SWITCHED_OFF:
        wandb_with(**dict([variable.split("=")]))
    else:
        (tmp_path / "settings" / "settings").write_text("[default]\nmode = offline\n")
        wandb_with()
    LOGGERS["wandb"].make(configure("logger=wandb"), tmp_path)
    assert [each["mode"] for each in service.asked] == [SWITCHED_OFF.get(variable, "offline")]


def test_a_disabled_wandb_writes_nothing(
    configure: Configure, tmp_path: Path, wandb_with: Callable[..., None]
) -> None:
    wandb_with(WANDB_MODE="disabled")
    destination, run_dir = LOGGERS["wandb"], tmp_path / "run"
    logger: Any = destination.make(configure("logger=wandb"), run_dir)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    destination.end(logger, {"perplexity": 2.0}, 0)
    assert not list(run_dir.rglob("*"))


def test_wandb_goes_on_with_the_run_that_was_resumed(
    configure: Configure,
    tmp_path: Path,
    wandb_with: Callable[..., None],
    service: type[_Service],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configure("logger=wandb")
    wandb_with()
    monkeypatch.setattr(service, "reached", False)
    LOGGERS["wandb"].make(config, tmp_path)
    LOGGERS["wandb"].make(config, tmp_path)  # W&B is asked once in a process
    assert [each["mode"] for each in service.asked] == ["online", "offline", "offline"]
    assert "W&B cannot be used (no answer)" in caplog.text

    wandb_with()
    monkeypatch.setattr(service, "reached", True)
    LOGGERS["wandb"].make(config, tmp_path)
    for start, name in [("20260102_000000", "second"), ("20260101_000000", "first")]:
        (tmp_path / "wandb" / f"run-{start}-{name}").mkdir(parents=True)
        (tmp_path / "wandb" / f"run-{start}-{name}" / f"run-{name}.wandb").touch()
    LOGGERS["wandb"].make(config, tmp_path)
    assert [each["id"] for each in service.asked[3:]] == [None, "second"]
