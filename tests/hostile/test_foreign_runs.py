"""A run's directory that somebody else has filled: what reads it raises nothing but a sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import files_like, in_json

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory, train

RECORD = {
    "status": "complete", "error": "x", "cache": "disk", "perplexity": 1.0, "train_seconds": 1.0,
    "job": "1",
}  # fmt: skip
garbage = files_like(RECORD) | st.builds(
    lambda status: in_json({**RECORD, "status": status}), st.sampled_from(["diverged", "new", ""])
)
cells = st.text(max_size=8) | st.integers().map(str) | st.floats().map(str) | st.just("9" * 5000)
curves = (
    st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map(
        lambda rows: "\n".join(["step,train/loss,validation/loss", *rows]).encode()
    )
    | st.binary(max_size=60)
    | st.just(b"step,train/loss\n1," + b"x" * 200_000)
)
FILES: dict[str, st.SearchStrategy[bytes]] = {
    "metrics.json": garbage,
    "failed.json": garbage,
    "cache.json": garbage,
    "inputs.json": garbage,
    "slurm.json": garbage,
    "csv/version_0/metrics.csv": curves,
    "csv/version_x/metrics.csv": curves,
    "checkpoints/step=00000001.ckpt": st.binary(max_size=60),
}


@pytest.fixture
def saved(configure: Callable[..., Config], tmp_path: Path) -> tuple[Config, str]:
    """A run's config, and as a run writes it."""
    config = configure()
    directory.claim(tmp_path, config)
    return config, (tmp_path / "config.yaml").read_text()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.fixed_dictionaries({}, optional=FILES))
def test_whatever_lies_there_is_data(
    saved: tuple[Config, str], monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    config, text = saved

    class Reached(Exception):
        """The run would be made now."""

    def prepare(*args: Any, **more: Any) -> None:
        raise Reached

    monkeypatch.setattr(train, "prepare", prepare)
    # Which takes the longest, and is fed with garbage elsewhere.
    monkeypatch.setattr(directory, "read_config", lambda run_dir: config)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with tempfile.TemporaryDirectory() as root:
        place = Path(root, "run")
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        directory.state_of(place)
        assert "\n" not in (directory.error_of(place) or "")
        directory.begun_by_this_job(Path(root, "other"), config)
        directory.validation_of_kept(place, "loss")
        place.mkdir(exist_ok=True)
        (place / "config.yaml").write_text(text)
        with suppress(InputError):
            directory.read_curve(place, "train/loss")
        with pytest.raises((InputError, Reached)) if _goes_on(place) else nullcontext():
            train.resume(place)


def _goes_on(place: Path) -> bool:
    return directory.state_of(place) is not directory.State.complete


def test_extreme_numbers_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "csv" / "version_0").mkdir(parents=True)
    (tmp_path / "csv" / "version_0" / "metrics.csv").write_text(
        f"step,train/loss,validation/loss\n1,1e300,inf\n{2**53 - 1},-1e300,nan\n{2**70},1,1\n"
    )
    assert train.draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
