"""``logger=tensorboard``: event files in the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpa_exp.config import Config
from qpa_exp.runs.loggers import Destination

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def make(config: Config, run_dir: Path) -> Logger:
    """Return Lightning's, without the ``hp_metric`` of -1 that stands for a result there.

    A resumed run goes on in the same directory, so TensorBoard shows one curve.
    """
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run_dir), name="tensorboard", version=0, default_hp_metric=False)


def end(logger: Any, metrics: dict[str, Any], status: int) -> None:
    """Write the final figures, beside the config in the tab HPARAMS."""
    figures = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    logger.log_hyperparams(dict(logger.hparams), figures)
    logger.save()


ENTRY = Destination(make, end, needs=("tensorboard",))
