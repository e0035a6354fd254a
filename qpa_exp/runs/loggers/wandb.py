"""``logger=wandb``: Weights & Biases; offline, to be sent later, where no key is set up."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import Config
from qpa_exp.errors import one_line
from qpa_exp.runs.directory import source_name
from qpa_exp.runs.loggers import LOGGERS, Destination

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)

_SECONDS = 20
"""How long W&B may be silent before the run goes on without it."""


def make(config: Config, run_dir: Path) -> WandbLogger:
    """Online where a key is set up and accepted, else offline, which needs no network."""
    if not is_offline():
        try:
            online = _new_logger(config, run_dir, offline=False)
            _ = online.experiment  # W&B is asked here
        except Exception as error:  # W&B's own, and those of the libraries under it
            reason = one_line(error).replace(os.environ.get("WANDB_API_KEY") or "\0", "...")[:200]
            log.warning("W&B cannot be used (%s): this run is logged offline.", reason)
            os.environ["WANDB_MODE"] = "offline"
        else:
            return online
    return _new_logger(config, run_dir, offline=True)


def _new_logger(config: Config, run_dir: Path, offline: bool) -> WandbLogger:
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Settings

    return WandbLogger(
        id=None if offline else _earlier(run_dir),
        settings=Settings(init_timeout=_SECONDS),
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=list(config.logger.tags),
        name=config.logger.run_name or _name(config, run_dir),
        save_dir=str(run_dir),
        offline=offline,
        mode="offline" if offline else "online",  # W&B has read the environment by now
    )


def _earlier(run_dir: Path) -> str | None:
    """Return the id that this run had in W&B before it was resumed: there it goes on."""
    known = sorted((run_dir / "wandb").glob("run-*/run-*.wandb"))  # by the time of their start
    return known[-1].stem.removeprefix("run-") if known else None


def _name(config: Config, run_dir: Path) -> str:
    """Return what a person looks for in a list of runs: what was trained on what, and when."""
    parts = [config.model.label, config.peft.method, config.qpa.variant, config.data.name]
    if config.init_from is not None:
        parts.append(f"from {source_name(config.init_from)}")
    return f"{' '.join(parts)} seed={config.seed} ({run_dir.name})"


def is_offline() -> bool:
    """Whether W&B is switched off, or ``wandb login`` and the environment have left no key."""
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_MODE") == "offline":
        return True
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return not (os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))


def end(logger: Any, metrics: dict[str, Any], status: int) -> None:
    """Send the final figures, as the run's summary and as a table; say how to sync.

    W&B marks a run as failed whose exit status is not 0.
    """
    import wandb

    run = logger.experiment
    run.summary.update(metrics)
    figures = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    rows: list[Iterable[Any]] = [[name, float(value)] for name, value in figures.items()]
    if rows:
        run.log({"result": wandb.Table(columns=["figure", "value"], data=rows)})
    directory = Path(run.dir).parent
    run.finish(exit_code=status)
    if is_offline():
        log.info("W&B ran offline; to send this run: wandb sync %s", directory)


ENTRY = Destination(make, end, reads=LOGGERS.decides, needs=("wandb", "requests"))
