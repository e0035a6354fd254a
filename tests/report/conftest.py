"""Runs on disk with figures that a test chooses."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qpa_exp.adapters.counts import Counts
from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.runs import directory

MakeRun = Callable[..., Path]

PLAIN = ("seed", "peft.r", "qpa.n_mlp", "qpa.n_layers", "optim.lr", "trainer.max_epochs")
"""Keys that are set in a composed config: composing takes as long as all else in these tests."""


def _config(overrides: Sequence[str]) -> Config:
    given = dict(override.split("=", 1) for override in overrides)
    rest = tuple(f"{key}={value}" for key, value in given.items() if key not in PLAIN)
    config = copy.deepcopy(_composed(rest))
    for key in PLAIN:
        if key in given:
            node, _, name = key.rpartition(".")
            setattr(getattr(config, node) if node else config, name, json.loads(given[key]))
    config.qpa.seed = config.seed
    return config


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return compose_config(overrides)


def write_run(
    path: Path, *overrides: str, validation: float | None = None,
    metric: str = "perplexity", **metrics: Any,
) -> Path:  # fmt: skip
    """A complete run's files, not its training."""
    config = _config(overrides)
    directory.claim(path, config)
    given = {"status": "complete", "perplexity": 100.0, "perplexity_padded": None}
    sizes = Counts(1000, 2000, 100_000, 64, 8, 3).__dict__
    rest = {
        "base_accuracy": 0.5, "base_perplexity": 200.0, "base_perplexity_padded": 2.0,
        "seed": config.seed, "train_seconds": 5.0, "step_seconds_median": 0.1, "steps": 10,
        "versions": {"python": "3", "qpa_exp": "0"}, "data_sha256": "ab",
    }  # fmt: skip
    directory.write_metrics(path, {**given, **sizes, **rest, **metrics})
    if validation is not None:
        curve = path / "csv" / "version_0" / "metrics.csv"
        curve.parent.mkdir(parents=True)
        curve.write_text(f"step,validation/{metric}\n0,999\n9,{validation}\n")
    return path


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """``make_run(path, *overrides, perplexity=...)``: as :func:`write_run`."""
    return write_run


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Path]:
    """``make_study(directory, runs, figures=...)``: the record of a study of these runs."""

    def make(place: Path, runs: list[Path], **changed: Any) -> Path:
        record = {
            "study": "fig2", "title": "A title", "paper": "Figure 2", "scale": "tiny",
            "command": "python -m qpa_exp -m sweep=fig2", "figures": [],
            "tables": [], "notes": [], "differs": [],
            "runs": [
                {
                    "path": os.path.relpath(run, place), "label": run.name,
                    "overrides": [f"run={run.name}"],
                }
                for run in runs
            ],
        }  # fmt: skip
        place.mkdir(parents=True, exist_ok=True)
        (place / "sweep.json").write_text(json.dumps(record | changed))
        return place

    return make
