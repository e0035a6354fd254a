"""Before a sweep starts: every run composed, checked, named and counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from qpa_exp.adapters.counts import Counts, plan_counts
from qpa_exp.cli import explain, to_config
from qpa_exp.config import Config
from qpa_exp.data.corpus import comes_from_the_hub
from qpa_exp.errors import InputError
from qpa_exp.runs.states import State, state_of
from qpa_exp.sweeps.expand import as_overrides, labels
from qpa_exp.sweeps.run_name import run_name
from qpa_exp.sweeps.studies import Work


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        label: what sets it apart from the sweep's other runs.
        overrides: all of it, as ``python -m qpa_exp`` takes them.
        run_dir: its directory, which follows from its content.
    """

    label: str
    overrides: tuple[str, ...]
    config: Config
    run_dir: Path
    counts: Counts

    @property
    def title(self) -> str:
        """Its label and seed, for the terminal."""
        return f"{self.label} seed={self.config.seed}".lstrip()

    @property
    def state(self) -> State:
        """How far it has come."""
        return state_of(self.run_dir)

    @property
    def launched(self) -> list[str]:
        """Its overrides for a launcher, its directory among them."""
        return [*self.overrides, f"hydra.sweep.subdir={self.run_dir.name}"]


class Preparation:
    """Composes the runs of a sweep as its launcher will.

    Args:
        context: Hydra's.
        master: the sweep's own config.
        chosen: overrides that choose the study, which every job carries along.
    """

    def __init__(self, context: HydraContext, master: DictConfig, chosen: Sequence[str]) -> None:
        self.context, self.master, self.chosen = context, master, list(chosen)
        self.work = Work(master.hydra.sweeper.work)
        self.directory = Path(master.hydra.sweep.dir)
        self.only_plan = bool(master.hydra.sweeper.only_plan)
        self._counts: dict[str, Counts] = {}

    def study(self) -> dict[str, Any]:
        """What ``hydra.sweeper`` says, every reference resolved.

        A sweep of the user's own is what the command line says: what the scale fixes is for
        studies, and for who names a scale.
        """
        study = OmegaConf.to_container(self.master.hydra.sweeper, resolve=True)
        assert isinstance(study, dict)
        if study["study"] is None and not self.chosen:
            study["fixed"] = {}
        return {str(key): value for key, value in study.items()}

    def jobs(self, runs: Sequence[Mapping[str, str]]) -> list[Job]:
        """One job for each different run.

        Raises:
            InputError: a key, a value or a corpus that is not allowed, before anything has run.
        """
        made: dict[Path, Job] = {}
        for run, label in zip(runs, labels(runs), strict=True):
            job = self.job(run, label)
            made.setdefault(job.run_dir, job)
        return list(made.values())

    def job(self, run: Mapping[str, str], label: str) -> Job:
        """The job of one run; errors as :meth:`jobs`."""
        overrides = as_overrides(run)
        config = self._compose([*self.chosen, *overrides])
        _refuse_processes(config)
        CHECKS[self.work](config)
        # A plan needs neither weights nor the network, so not the text that the hub has.
        unread = self.only_plan and comes_from_the_hub(config.data)
        name = run_name(config, self.work, reads_text=not unread)
        shape = _shape(config)
        if shape not in self._counts:
            self._counts[shape] = plan_counts(config)
        return Job(label, tuple(overrides), config, self.directory / name, self._counts[shape])

    def launched(self, job: Job) -> list[str]:
        """What the launcher is given."""
        return [*self.chosen, *job.launched]

    def _compose(self, overrides: list[str]) -> Config:
        loader = self.context.config_loader
        try:
            composed = loader.load_sweep_config(self.master, overrides)
            with open_dict(composed):
                del composed["hydra"]
            return to_config(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error)) from error


def _check_gradients(config: Config) -> None:
    from qpa_exp.sweeps.gradients import check  # which needs torch

    check(config)


CHECKS: dict[Work, Callable[[Config], None]] = {
    Work.train: lambda config: None,  # noqa: ARG005
    Work.gradient_variance: _check_gradients,
}
"""What each kind of work refuses beyond the schema."""


def _refuse_processes(config: Config) -> None:
    if config.trainer.strategy.startswith("ddp"):
        raise InputError(
            f"trainer.strategy={config.trainer.strategy} starts processes of its own, and each of "
            "them would start the sweep again: sweep with trainer=gpu or trainer=cpu."
        )


def _shape(config: Config) -> str:
    """What the counts of a run depend on, and a little more: seeds left out."""
    qpa = dataclasses.asdict(config.qpa) | {"seed": None}
    model, peft = dataclasses.asdict(config.model), dataclasses.asdict(config.peft)
    return json.dumps([model, peft, qpa, config.data.max_length], default=str)
