"""A finished run, read back: its config, its results and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qpa_exp.adapters.adapted import AdaptedModel
from qpa_exp.adapters.qpa_model import load_adapted
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_tokenizer
from qpa_exp.runs import directory
from qpa_exp.runs.callbacks import Stopwatch
from qpa_exp.runs.directory import Metrics
from qpa_exp.task import TASKS


@dataclass(frozen=True)
class TrainedRun:
    """A run that is complete, and the model that it trained, in evaluation mode."""

    config: Config
    metrics: Metrics
    model: AdaptedModel


def load_run(run_dir: Path) -> TrainedRun:
    """Read a complete run back.

    Raises:
        InputError: no run directory, a run that is not complete, or files that are damaged.
    """
    config = directory.read_config(run_dir)
    metrics = directory.read_metrics(run_dir)
    if metrics is None or metrics.get("status") != "complete":
        raise InputError(
            f"{run_dir} is not complete: continue it with python -m qpa_exp resume={run_dir}"
        )
    task = TASKS[config.task](config, Stopwatch())
    base = task.load_model(load_tokenizer(config.model), metrics.get("class_names", []))
    return TrainedRun(
        config, metrics, load_adapted(base, directory.trained(run_dir, config), config).eval()
    )
