"""A finished run, read back: its config, its results and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from qpa_exp.adapters import QPAModel
from qpa_exp.adapters.build import Adapted
from qpa_exp.config import Config
from qpa_exp.errors import InputError, one_line
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
    model: Adapted


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
    base = load_model(config.model)
    model: Adapted
    if config.qpa.variant == "off":
        model = _load_adapter(base, run_dir / ADAPTER)
    else:
        model = QPAModel.from_pretrained(base, run_dir / GENERATOR)
    return TrainedRun(config, metrics, model.eval())


def _load_adapter(base: Any, directory: Path) -> PeftModel:
    if not directory.is_dir():
        raise InputError(f"{directory} is missing: the run's trained adapter is not there.")
    try:
        return PeftModel.from_pretrained(base, str(directory), use_safetensors=True)
    except Exception as error:  # PEFT, safetensors and torch have errors of their own for damage
        raise InputError(f"{directory} cannot be loaded: {one_line(error)[:300]}") from error
