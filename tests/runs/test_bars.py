"""What is shown of a run on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.config import Config
from qpa_exp.runs import callbacks
from qpa_exp.runs.callbacks import Lines, StepTimes
from qpa_exp.runs.train import run


@given(
    batches=st.integers(1, 9), per_step=st.integers(1, 4), epochs=st.integers(1, 4),
    max_steps=st.integers(1, 30) | st.just(-1),
)  # fmt: skip
def test_a_bar_is_full_where_an_epoch_or_the_run_ends(
    batches: int, per_step: int, epochs: int, max_steps: int
) -> None:
    trained = [0] * epochs
    for epoch in range(epochs):  # as Lightning trains: the last batch of an epoch ends a step
        for batch in range(1, batches + 1):
            steps = sum(-(-n // per_step) for n in trained[:epoch]) + trained[epoch] // per_step
            if steps != max_steps:
                trained[epoch] = batch
    bar = Lines(StepTimes())
    for epoch, n in enumerate(trained):
        trainer: Any = SimpleNamespace(
            is_global_zero=True, num_training_batches=batches, max_steps=max_steps,
            current_epoch=epoch, accumulate_grad_batches=per_step, max_epochs=epochs,
        )  # fmt: skip
        bar.setup(trainer, SimpleNamespace(), "fit")  # type: ignore[arg-type]
        if n:
            assert bar.total_train_batches == n


def test_in_a_file_a_line_says_now_and_then_how_far_it_is(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level("INFO"):
        run(configure("trainer.progress_bar=true", "trainer.max_steps=2"), tmp_path / "often")
    for line in ("Step 1 of 2: train/loss ", "Batch 1 of 2, test split", "left 0:00:00"):
        assert line in caplog.text
    caplog.clear()
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_LINES", 3600.0)
    with caplog.at_level("INFO"):
        run(configure("trainer.progress_bar=true", "trainer.max_steps=2"), tmp_path / "seldom")
    said = [line for line in caplog.messages if line.startswith(("Step", "Batch"))]
    assert len(said) == 1
    assert said[0].startswith("Step 2 of 2: ")
