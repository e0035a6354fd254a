"""Where curves go: always a CSV file in the run directory, and what ``logger=`` names."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from qpa_exp.config import Config, LoggerName

log = logging.getLogger(__name__)


def make_loggers(config: Config, run_dir: Path) -> list[Logger]:
    """Lightning's loggers for this run. The CSV logger starts a new part for each resume."""
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    if config.logger.name == LoggerName.tensorboard:
        loggers.append(TensorBoardLogger(str(run_dir), name="tensorboard"))
    if config.logger.name == LoggerName.wandb:
        loggers.append(_wandb_logger(config, run_dir))
    for logger in loggers[1:]:
        logger.log_hyperparams(dataclasses.asdict(config))
    return loggers


def _wandb_logger(config: Config, run_dir: Path) -> WandbLogger:
    """Online where a key is set up, else offline, which needs neither key nor network."""
    return WandbLogger(
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=list(config.logger.tags),
        name=run_dir.name,
        save_dir=str(run_dir),
        offline=not _has_key() or os.environ.get("WANDB_MODE") == "offline",
    )


def _has_key() -> bool:
    return bool(wandb.api.api_key)


def log_summary(loggers: list[Logger], metrics: dict[str, Any]) -> None:
    """Send the final figures to W&B, as its summary and as a table; say how to sync."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        run = logger.experiment
        figures = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        run.summary.update(figures)
        rows: list[Iterable[Any]] = [[name, float(value)] for name, value in figures.items()]
        run.log({"result": wandb.Table(columns=["figure", "value"], data=rows)})
        directory = Path(run.dir).parent
        offline = run.settings.mode == "offline" or run.offline
        wandb.finish()
        if offline:
            log.info("W&B ran offline; to send this run: wandb sync %s", directory)
