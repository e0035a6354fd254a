"""Sweeps in this process, and runs on disk with figures that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qpa_exp.__main__ import run_sweep
from qpa_exp.adapters.counts import Counts
from qpa_exp.cli import compose_config
from qpa_exp.runs import directory
from qpa_exp.sweeps import studies

MakeRun = Callable[..., Path]
Sweep = Callable[..., None]


@pytest.fixture
def sweep(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """``sweep("qpa.n_mlp=32,64")``: runs of two steps on the small model, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    short = ["trainer.max_steps=2", "trainer.validate_every_n_steps=2", "hydra.sweep.dir=runs"]
    return lambda *more: run_sweep([*overrides, *short, *more])


@pytest.fixture
def add_study(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], None]:
    """``add_study({"study": "mine", ...})``: one more study, from a file of this test's."""

    def add(study: dict[str, Any]) -> None:
        directory = tmp_path_factory.mktemp("studies")
        OmegaConf.save(OmegaConf.create(study), directory / f"{study['study']}.yaml")
        monkeypatch.setattr(studies, "STUDIES", dict(studies.STUDIES))
        studies.register_studies(directory)

    return add


@pytest.fixture
def make_run() -> MakeRun:
    """``make_run(path, *overrides, perplexity=...)``: a complete run's files, not its training."""

    def make(path: Path, *overrides: str, validation: float | None = None, **metrics: Any) -> Path:
        config = compose_config(overrides)
        directory.claim(path, config)
        given = {"status": "complete", "perplexity": 100.0, "perplexity_padded": None}
        sizes = Counts(1000, 2000, 100_000, 8, 3).__dict__
        rest = {
            "base_perplexity": 200.0, "base_perplexity_padded": 2.0, "seed": config.seed,
            "train_seconds": 5.0, "step_seconds_median": 0.1, "steps": 10,
            "versions": {"python": "3", "qpa_exp": "0"}, "data_sha256": "ab",
        }  # fmt: skip
        directory.write_metrics(path, {**given, **sizes, **rest, **metrics})
        if validation is not None:
            curve = path / "csv" / "version_0" / "metrics.csv"
            curve.parent.mkdir(parents=True)
            curve.write_text(f"step,validation/perplexity\n0,999\n9,{validation}\n")
        return path

    return make


@pytest.fixture
def make_study() -> Callable[..., Path]:
    """``make_study(directory, runs, figures=...)``: the record of a study of these runs."""

    def make(place: Path, runs: list[Path], **changed: Any) -> Path:
        record = {
            "study": "fig2", "title": "A title", "paper": "Figure 2", "scale": "tiny",
            "command": "python -m qpa_exp -m sweep=fig2", "figures": [],
            "tables": [], "notes": [], "differs": [],
            "runs": [
                {"path": str(run), "label": run.name, "overrides": [f"run={run.name}"]}
                for run in runs
            ],
        }  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        (place / "sweep.json").write_text(json.dumps(record | changed))
        return place

    return make
