"""A checkpoint that somebody else has written: its plain data may be anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import VALUES, changed, places

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory, train

ANYTHING = VALUES | st.sampled_from([
    torch.tensor(math.nan), torch.zeros(3, 3), torch.full((8,), math.inf), torch.tensor(2**60),
])  # fmt: skip


class Trained(Exception):
    """The run has gone on from the checkpoint to its end, and would be tested now."""


@pytest.fixture
def begun(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The checkpoint of a run that has a step left."""
    config = configure("trainer.max_steps=2", "trainer.checkpoint_every_n_steps=1")
    train.run(config, tmp_path / "run")
    (tmp_path / "run" / directory.METRICS).unlink()
    checkpoint, last = directory.checkpoints(tmp_path / "run")
    last.unlink()
    parts = train.build(config)
    # What takes the longest, and is fed with garbage elsewhere.
    monkeypatch.setattr(train, "build", lambda *_, **__: parts)
    monkeypatch.setattr(directory, "read_config", lambda run_dir: config)
    monkeypatch.setattr("lightning_fabric.utilities.registry.entry_points", lambda **_: [])

    def choose(*_: object) -> None:
        raise Trained

    monkeypatch.setattr(train, "_choose", choose)
    return checkpoint


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_checkpoint_is_gone_on_from_or_refused(begun: Path, data: st.DataObject) -> None:
    run = begun.parents[1]
    whole = begun.with_name("whole")
    if not whole.exists():
        begun.rename(whole)
    saved: dict[str, Any] = torch.load(whole, weights_only=True)
    top = data.draw(st.sampled_from(list(saved)))
    place = data.draw(st.sampled_from([(top,), *((top, *place) for place in places(saved[top]))]))
    how = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    torch.save(changed(saved, place, how, data.draw(ANYTHING)), begun)
    try:
        train.resume(run)
    except Trained:
        pass
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        for path in directory.checkpoints(run):
            path.unlink()
