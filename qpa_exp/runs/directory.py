"""A run's directory: claiming one, reading one back. What is on disk is data, never run."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qpa_exp.config import Config, validate
from qpa_exp.errors import InputError, first_line
from qpa_exp.runs.results import METRICS

CONFIG = "config.yaml"
CACHE = "cache.json"


def claim(run_dir: Path, config: Config) -> None:
    """Make a new run's directory and write its config.

    Raises:
        InputError: the directory holds a run already.
    """
    if (run_dir / CONFIG).exists() or (run_dir / METRICS).exists():
        raise InputError(
            f"{run_dir} holds a run already: continue it with resume={run_dir}, "
            "or choose another directory with hydra.run.dir=<directory>."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / f".{CONFIG}.part"
    part.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    part.replace(run_dir / CONFIG)


def note_cache(run_dir: Path, mode: str) -> None:
    """Write down what ``data.cache=auto`` came to: a resumed run must not decide again.

    Hidden states from a table and those computed with a batch may differ in their last bits.
    """
    (run_dir / CACHE).write_text(json.dumps({"cache": mode}) + "\n", encoding="utf-8")


def noted_cache(run_dir: Path) -> str | None:
    """What :func:`note_cache` wrote; None where there is nothing to go by."""
    try:
        return str(json.loads((run_dir / CACHE).read_text(encoding="utf-8"))["cache"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_config(run_dir: Path) -> Config:
    """The config of a run that was started here.

    Raises:
        InputError: the directory is not a run's, or its config is not one of ours.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a run directory: it has no {CONFIG}, which every run writes."
        )
    try:
        text = path.read_text(encoding="utf-8")
        saved = yaml.safe_load(text)
        if not isinstance(saved, dict) or "${" in text:  # a saved config is resolved: plain values
            raise InputError(f"{path} is not the config of a run.")
        merged = OmegaConf.merge(OmegaConf.structured(Config), saved)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not the config of a run: {first_line(error)}") from error
    assert isinstance(config, Config)
    validate(config)
    return config


def discard(run_dir: Path) -> None:
    """Take away what Hydra made for a run that never began: its log, and the empty directories."""
    if not run_dir.is_dir() or (run_dir / CONFIG).exists():
        return
    for log in run_dir.glob("*.log"):
        log.unlink()
    for directory in (run_dir, *run_dir.parents[:2]):  # outputs/<names>/<time>
        if any(directory.iterdir()):
            return
        directory.rmdir()
