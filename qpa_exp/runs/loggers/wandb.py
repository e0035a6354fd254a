"""``logger=wandb``: Weights & Biases; offline, to be sent later, where no key is set up.

``wandb offline``, ``WANDB_MODE`` and ``WANDB_DISABLED`` are obeyed.
"""

from __future__ import annotations

import logging
import os
import shutil
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

WITHOUT_NETWORK = ("offline", "disabled")
"""Modes in which W&B is asked nothing; under ``disabled`` nothing is written either."""

_SECONDS = 20
"""How long W&B may be silent before the run goes on without it."""


def make(config: Config, run_dir: Path) -> WandbLogger:
    """Return a logger in the mode that :func:`mode` gives; offline where W&B cannot be reached."""
    import wandb

    if (asked := mode()) not in WITHOUT_NETWORK:
        before = _online_runs(run_dir)
        try:
            online = _new_logger(config, run_dir, asked)
            _ = online.experiment  # W&B is asked here
        except Exception as error:  # W&B's own, and those of the libraries under it
            reason = one_line(error).replace(os.environ.get("WANDB_API_KEY") or "\0", "...")[:200]
            log.warning("W&B cannot be used (%s): this run is logged offline.", reason)
            for left in _online_runs(run_dir) - before:  # W&B has no run of that id
                shutil.rmtree(left, ignore_errors=True)
            wandb.setup(wandb.Settings(mode="offline"))  # for the next runs of this process, too
        else:
            return online
    return _new_logger(config, run_dir, mode())


def _new_logger(config: Config, run_dir: Path, mode: str) -> WandbLogger:
    from pytorch_lightning.loggers import WandbLogger
    from wandb import Settings

    return WandbLogger(
        id=None if mode in WITHOUT_NETWORK else _earlier(run_dir),
        settings=Settings(init_timeout=_SECONDS),
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=list(config.logger.tags),
        name=config.logger.run_name or _name(config, run_dir),
        save_dir=str(run_dir),
        mode=mode,
    )


def _online_runs(run_dir: Path) -> set[Path]:
    return set((run_dir / "wandb").glob("run-*"))


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


def mode() -> str:
    """Return the mode of ``wandb.init`` that the user has chosen by W&B's own means.

    It is ``offline`` where no key is set up, too.
    """
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "on", "true", "yes"):
        return "disabled"  # transformers obeys this variable, W&B itself no longer does
    settings = wandb.setup().settings
    chosen = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)
    if chosen in WITHOUT_NETWORK or settings.api_key or get_netrc_auth(settings.base_url):
        return chosen
    return "offline"


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
    if run.offline:
        log.info("W&B ran offline; to send this run: wandb sync %s", directory)


ENTRY = Destination(make, end, reads=LOGGERS.decides, needs=("wandb", "requests"))
