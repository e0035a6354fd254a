"""Where curves go besides the run directory's own CSV file: one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import Config
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class Destination:
    """An ``ENTRY`` of this folder.

    Attributes:
        make: Lightning's logger for a run that writes to this directory; None adds none.
        summarize: what it does with the final figures.
        reads: conditional config keys that it reads.
    """

    make: Callable[[Config, Path], Logger] | None = None
    summarize: Callable[[Any, dict[str, Any]], None] | None = None
    reads: tuple[str, ...] = ()


LOGGERS: Registry[Destination] = Registry(
    "logger.name",
    __name__,
    decides=("logger.project", "logger.entity", "logger.group", "logger.tags"),
)


def make_loggers(config: Config, run_dir: Path) -> list[Logger]:
    """Lightning's loggers for this run. The CSV logger starts a new part for each resume."""
    import dataclasses

    from pytorch_lightning.loggers import CSVLogger

    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    if make := LOGGERS[config.logger.name].make:
        loggers.append(make(config, run_dir))
        loggers[-1].log_hyperparams(dataclasses.asdict(config))
    return loggers


def log_summary(config: Config, loggers: list[Logger], metrics: dict[str, Any]) -> None:
    """Hand the final figures to whoever shows them."""
    if summarize := LOGGERS[config.logger.name].summarize:
        summarize(loggers[-1], metrics)
