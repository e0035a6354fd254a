"""A disk that is full, wherever a run writes: nothing is lost, nothing is left half written."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs.train import resume, run


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """In this context the system refuses to write more than so many bytes into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def sizes(place: Path) -> dict[str, int]:
    return {str(f.relative_to(place)): f.stat().st_size for f in place.rglob("*") if f.is_file()}


def weights(place: Path) -> dict[str, torch.Tensor]:
    (file,) = place.glob("generator/*.safetensors")
    return load_file(file)


@pytest.mark.long
def test_a_run_that_the_disk_refused_goes_on_to_the_same_weights(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once for every file of a run: the disk is full just before that file's end."""
    brief = ("trainer.max_steps=3", "trainer.checkpoint_every_n_steps=1", "data.batch_size=8")
    brief = (*brief, "trainer.limit_eval_batches=1", "peft.lora_dropout=0.2")
    monkeypatch.setenv("QPA_EXP_CACHE", str(tmp_path / "cache"))
    whole = run(configure(*brief), tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    files = sizes(tmp_path / "whole")
    limits = sorted({size - 1 for size in files.values() if size}, reverse=True)
    assert len(limits) > 6
    for limit in limits:
        place = tmp_path / f"at most {limit}"
        monkeypatch.setenv("QPA_EXP_CACHE", str(place / "cache"))
        with files_of_at_most(limit), pytest.raises((OSError, InputError)) as refused:
            run(configure(*brief), place)
        assert "cannot be written" in str(refused.value) or isinstance(refused.value, OSError)
        assert not (place / "metrics.json").exists()
        began = (place / "config.yaml").exists()
        found = resume(place) if began else run(configure(*brief), place)
        actual = weights(place)
        assert all(torch.equal(expected[name], actual[name]) for name in expected), limit
        assert found["perplexity"] == whole["perplexity"]
        assert not list(place.rglob("*.part"))
