"""What moves the circuit's angles: AdamW with all the rest, or a search without gradients.

One file each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpa_exp.config import OptimConfig
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

OF_A_SEARCH = (
    "optim.over", "optim.search_every_n_steps", "optim.max_evaluations", "optim.radius",
)  # fmt: skip

Search = Callable[["Callable[[Tensor], float]", "Tensor", OptimConfig, float], "Tensor"]
"""Takes the loss at a point, a start, the config and a rate, and gives a better point."""


@dataclass(frozen=True)
class AnglesOptimizer:
    """An ``ENTRY`` of this folder.

    Attributes:
        search: finds better angles; None leaves them to AdamW.
        reads: conditional config keys that it reads.
        keeps_a_simplex: whether it keeps a point for each parameter, each of that size.
    """

    search: Search | None = None
    keeps_a_simplex: bool = False
    reads: tuple[str, ...] = OF_A_SEARCH


OPTIMIZERS: Registry[AnglesOptimizer] = Registry("optim.name", __name__, decides=OF_A_SEARCH)
