"""Where curves go besides the run directory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qpa_exp.config import Config
from qpa_exp.runs import directory
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.module import Divergence
from qpa_exp.runs.train import run

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


@pytest.mark.slow
def test_wandb_knows_a_run_and_how_it_ended_offline_where_there_is_no_key(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    crashes_at: CrashesAt,
) -> None:
    ended: list[SimpleNamespace] = []
    proper = wandb.Run.finish

    def finish(self: wandb.Run, exit_code: int | None = None, **more: object) -> None:
        seen = {"config": dict(self.config), "summary": dict(self.summary)}
        ended.append(SimpleNamespace(name=self.name, status=exit_code, **seen))
        proper(self, exit_code, **more)

    monkeypatch.setattr(wandb.Run, "finish", finish)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
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


def test_wandb_goes_on_with_the_run_that_was_resumed(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    class Online:
        experiment = None

        def __init__(self, **given: object) -> None:
            asked.append(given)

    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", Online)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = configure("logger=wandb")
    LOGGERS["wandb"].make(config, tmp_path)
    for start, name in [("20260102_000000", "second"), ("20260101_000000", "first")]:
        (tmp_path / "wandb" / f"run-{start}-{name}").mkdir(parents=True)
        (tmp_path / "wandb" / f"run-{start}-{name}" / f"run-{name}.wandb").touch()
    LOGGERS["wandb"].make(config, tmp_path)
    assert [each["id"] for each in asked] == [None, "second"]
