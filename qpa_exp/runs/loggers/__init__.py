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
        end: what it does when the run has ended, with the final figures and an exit status; the
            figures of a run that failed say why.
        reads: conditional config keys that it reads.
        needs: modules that the extra ``loggers`` installs.
    """

    make: Callable[[Config, Path], Logger] | None = None
    end: Callable[[Any, dict[str, Any], int], None] | None = None
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


LOGGERS: Registry[Destination] = Registry(
    "logger.name",
    __name__,
    decides=("logger.project", "logger.entity", "logger.group", "logger.tags", "logger.run_name"),
)
