"""What moves the circuit's angles: AdamW with all the rest, or a search without gradients.

One file each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.config import Config, OptimConfig
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from qpa_exp.adapters.counts import Counts

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


def check_search(config: Config, counts: Counts) -> None:
    """Refuse a search that cannot be; the run's sizes tell, nothing needs to be built.

    Args:
        config: of a run, under any optimizer.
        counts: its sizes.

    Raises:
        InputError: as :func:`check_searched`.
    """
    n, qpa = counts.trainable_params, config.qpa
    if config.optim.over == "theta":
        n = 0
        if counts.n_qubits is not None and counts.n_chunks is not None:
            n = ANSATZE[qpa.ansatz].count(qpa, counts.n_qubits, counts.n_chunks)
    check_searched(n, config.optim)


def check_searched(n: int, config: OptimConfig) -> None:
    """Refuse to search so many parameters.

    Raises:
        InputError: there are none, or too many, or it may evaluate the loss too rarely for them.
    """
    optimizer = OPTIMIZERS[config.name]
    if optimizer.search is None:
        return
    if n == 0:
        raise InputError(
            f"optim={config.name} searches the circuit's angles, and this model has none to "
            "train: give optim=adamw."
        )
    if not optimizer.keeps_a_simplex:
        return
    if n > _MOST_SEARCHED:
        raise InputError(
            f"optim={config.name} would search {n:,} parameters, and takes at most "
            f"{_MOST_SEARCHED:,}: give optim.over=theta, fewer qubits or layers, or optim=spsa."
        )
    least = n + 2
    if config.max_evaluations is not None and config.max_evaluations < least:
        raise InputError(
            f"optim.max_evaluations={config.max_evaluations} is too small for the {n} parameters "
            f"that optim={config.name} searches: give at least {least}."
        )


_MOST_SEARCHED = 1_000
"""COBYLA and Nelder-Mead keep a simplex of as many points as parameters, each of that size."""
