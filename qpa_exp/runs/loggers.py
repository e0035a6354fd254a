"""Where curves go: always a CSV file in the run directory, and what ``logger=`` names."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from requests.utils import get_netrc_auth

from qpa_exp.config import Config

log = logging.getLogger(__name__)


def make_loggers(config: Config, run_dir: Path) -> list[Logger]:
    """Lightning's loggers for this run. The CSV logger starts a new part for each resume."""
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    if config.logger.name == "tensorboard":
        loggers.append(TensorBoardLogger(str(run_dir), name="tensorboard"))
    if config.logger.name == "wandb":
        loggers.append(_wandb_logger(config, run_dir))
    for logger in loggers[1:]:
        logger.log_hyperparams(dataclasses.asdict(config))
    return loggers


def _wandb_logger(config: Config, run_dir: Path) -> WandbLogger:
    """Online where a key is set up and accepted, else offline, which needs no network."""
    if not _is_offline():
        import wandb  # here, for it takes every run that does not use it half a second to start

        online = _new_wandb_logger(config, run_dir, offline=False)
        try:
            _ = online.experiment  # W&B is asked here
        except wandb.errors.Error as error:
            log.warning("W&B cannot be reached (%s): this run is logged offline.", error)
            os.environ["WANDB_MODE"] = "offline"
        else:
            return online
    return _new_wandb_logger(config, run_dir, offline=True)


def _new_wandb_logger(config: Config, run_dir: Path, offline: bool) -> WandbLogger:
    return WandbLogger(
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=list(config.logger.tags),
        name=run_dir.name,
        save_dir=str(run_dir),
        offline=offline,
    )


def _is_offline() -> bool:
    return os.environ.get("WANDB_MODE") == "offline" or not _has_key()


def _has_key() -> bool:
    """Whether ``wandb login`` or the environment has left a key; the key itself is not kept."""
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))


def log_summary(loggers: list[Logger], metrics: dict[str, Any]) -> None:
    """Send the final figures to W&B, as its summary and as a table; say how to sync."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        import wandb

        run = logger.experiment
        figures = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        run.summary.update(figures)
        rows: list[Iterable[Any]] = [[name, float(value)] for name, value in figures.items()]
        run.log({"result": wandb.Table(columns=["figure", "value"], data=rows)})
        directory = Path(run.dir).parent
        wandb.finish()
        if _is_offline():
            log.info("W&B ran offline; to send this run: wandb sync %s", directory)
