"""The sweeper behind ``python -m qpa_exp -m``, in the namespace where Hydra looks for plugins."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Runs the parts of a study, or of the command line; see :mod:`qpa_exp.sweeps.sweep`."""

    def __init__(self, **options: Any) -> None:
        """``options`` are what :class:`qpa_exp.sweeps.studies.SweeperConfig` describes."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over; the task is :func:`qpa_exp.sweeps.worker.work`."""
        self.hydra_context = hydra_context
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run everything that is not complete yet."""
        from qpa_exp.sweeps.sweep import sweep

        sweep(self.hydra_context, self.config, arguments)
