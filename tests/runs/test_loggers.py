"""Where curves go besides the run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qpa_exp.config import Config
from qpa_exp.runs import directory
from qpa_exp.runs.train import run

Configure = Callable[..., Config]


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
def test_wandb_without_a_key_runs_offline_and_says_how_to_sync(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
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
