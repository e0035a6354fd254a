"""``logger=tensorboard``: event files in the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpa_exp.config import Config
from qpa_exp.runs.loggers import Destination

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def make(config: Config, run_dir: Path) -> Logger:
    """Lightning's."""
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run_dir), name="tensorboard")


ENTRY = Destination(make, needs=("tensorboard",))
