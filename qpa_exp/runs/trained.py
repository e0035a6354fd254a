"""A finished run, read back: its config, its results and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpa_exp.adapters import AdaptedModel
from qpa_exp.adapters.build import load_adapted
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_model
from qpa_exp.runs.directory import read_config
from qpa_exp.runs.results import read_metrics

GENERATOR, ADAPTER = "generator", "adapter"
"""Where a run saves what it trained: the generator, or under ``qpa=off`` the adapter itself."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that is complete, and the model that it trained, in evaluation mode."""

    config: Config
    metrics: dict[str, Any]
    model: AdaptedModel


def load_run(run_dir: Path) -> TrainedRun:
    """Read a complete run back.

    Raises:
        InputError: no run directory, a run that is not complete, or files that are damaged.
    """
    config = read_config(run_dir)
    metrics = read_metrics(run_dir)
    if metrics is None or metrics["status"] != "complete":
        raise InputError(
            f"{run_dir} is not complete: continue it with python -m qpa_exp resume={run_dir}"
        )
    where = run_dir / (ADAPTER if config.qpa.variant == "off" else GENERATOR)
    return TrainedRun(config, metrics, load_adapted(load_model(config.model), where, config))
