"""Before a sweep starts: every run composed, checked, named and counted."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from qpa_exp.adapters.counts import Counts
from qpa_exp.cli import as_text, compose_by
from qpa_exp.config import Config
from qpa_exp.data.corpus import comes_from_the_hub
from qpa_exp.errors import InputError
from qpa_exp.registry import NoEffect, spelled
from qpa_exp.runs.directory import OUTPUT, State, state_of
from qpa_exp.runs.optimizers import check_search
from qpa_exp.sweeps.run_name import run_name
from qpa_exp.task import TASKS

Axes = dict[str, list[str]]
"""The values of each key of the config, as an override spells them."""

MOST_RUNS = 10_000
"""Each is composed and checked before the first one starts."""


def expand(
    parts: Sequence[Mapping[str, Any]], fixed: Mapping[str, Any], arguments: Sequence[str],
    loader: ConfigLoader | None = None,
) -> list[dict[str, str]]:  # fmt: skip
    """One mapping from key to value for each run, part after part.

    The command line takes the place of what a part or ``fixed`` says about the same key, and a
    part the place of ``fixed``. A run that two parts describe alike appears once.

    Args:
        parts: each a product; a list is an axis, anything else one value.
        fixed: the same, for every part.
        arguments: Hydra overrides; ``key=a,b`` and the like are axes.
        loader: Hydra's, which knows the options of a group: ``group=glob(*)`` needs it.

    Raises:
        InputError: an override that is no list of values, or takes a key away; too many runs.
    """
    given = _axes_of(arguments, loader)
    products = [
        {key: _values(value) for key, value in {**fixed, **part}.items()} | given for part in parts
    ]
    n_runs = sum(math.prod(map(len, axes.values())) for axes in products)
    if n_runs > MOST_RUNS:
        raise InputError(f"This describes {n_runs:,} runs: a sweep has at most {MOST_RUNS:,}.")
    runs: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
    for axes in products:
        for values in itertools.product(*axes.values()):
            run = dict(zip(axes, values, strict=True))
            runs.setdefault(frozenset(run.items()), run)
    return list(runs.values())


def labels(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what sets each run apart from the others, seeds left out: the entries that differ."""
    keys = dict.fromkeys(key for run in runs for key in run)
    differing = [
        key
        for key in keys
        if key not in ("seed", "qpa.seed") and len({r.get(key) for r in runs}) > 1
    ]
    return [" ".join(f"{key}={run[key]}" for key in differing if key in run) for run in runs]


def spell(value: Any) -> str:
    """Return a value as Hydra's grammar for overrides writes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spell, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{spell(item)}' for key, item in value.items())}}}"
    return as_text(value) if isinstance(value, str) else spelled(value)


def _values(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [spell(item) for item in items]


def _axes_of(arguments: Iterable[str], loader: ConfigLoader | None) -> Axes:
    axes: Axes = {}
    for override in OverridesParser.create(loader).parse_overrides(list(arguments)):
        if override.is_delete():
            raise InputError(f"{override.input_line}: nothing can be taken away: give a value.")
        axes[override.get_key_element()] = values_of(override)
    return axes


def values_of(override: Override) -> list[str]:
    """Every value that an override lists, as it is spelled there.

    Raises:
        InputError: it is an interval, or the like, or there are none or too many.
    """
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line} gives no list of values: write {override.key_or_group}=a,b,c, "
            "or choice(...) or range(...)."
        )
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1))
    if not values:
        raise InputError(f"{override.input_line} gives no value: a sweep needs at least one.")
    if len(values) > MOST_RUNS:
        raise InputError(
            f"{override.input_line} lists too many values: a sweep has at most {MOST_RUNS:,} runs."
        )
    return [str(value) for value in values]


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
        """How far it has come; one that has its config alone waits for its turn."""
        state = state_of(self.run_dir)
        waits = state is State.interrupted and not (self.run_dir / OUTPUT).exists()
        return State.new if waits else state


class Preparation:
    """Turns the runs of studies into jobs.

    Args:
        context: Hydra's.
        master: the sweep's own config.
    """

    def __init__(self, context: HydraContext, master: DictConfig) -> None:
        self.context, self._master = context, master
        self._directory = Path(master.hydra.sweep.dir)
        self._only_plan = bool(master.hydra.sweeper.only_plan)
        self._load = functools.cache(self._compose)
        self._counts: dict[str, Counts] = {}
        self._jobs: dict[tuple[str, ...], Job] = {}
        self._unread: dict[str, NoEffect] = {}

    def jobs(self, runs: Sequence[Mapping[str, str]], study: str | None) -> list[Job]:
        """One job for each different run, without the keys that others of them read alone.

        Raises:
            InputError: a key, a value or a corpus that is not allowed, before anything has run.
        """
        made: dict[Path, Job] = {}
        self._unread.clear()
        for run, label in zip(runs, labels(runs), strict=True):
            job = self.job(run, label, study)
            made.setdefault(job.run_dir, job)
        read = {override.partition("=")[0] for job in made.values() for override in job.overrides}
        for key in self._unread.keys() - read:
            raise self._unread[key]
        return list(made.values())

    def job(self, run: Mapping[str, str], label: str, study: str | None) -> Job:
        """Return the job of one run; errors as :meth:`jobs`."""
        overrides = tuple(f"{key}={value}" for key, value in run.items())
        if overrides not in self._jobs:
            try:
                self._jobs[overrides] = self._job(overrides)
            except NoEffect as error:
                if error.key not in run:  # of a group: it is no single value to leave out
                    raise
                self._unread[error.key] = error
                return self.job({k: v for k, v in run.items() if k != error.key}, label, study)
        job = self._jobs[overrides]
        job = dataclasses.replace(job, label=label)
        return dataclasses.replace(job, config=_in_a_sweep(job.config, study, job.title))

    def _job(self, overrides: tuple[str, ...]) -> Job:
        config = compose_by(self._load, overrides)
        # A plan needs neither weights nor the network, so not the text that the hub has.
        unread = self._only_plan and comes_from_the_hub(config.data)
        name = run_name(config, reads_text=not unread)
        shape = _shape(config)
        if shape not in self._counts:
            self._counts[shape] = TASKS[config.task].plan(config)
        check_search(config, self._counts[shape])
        return Job("", overrides, config, self._directory / name, self._counts[shape])

    def _compose(self, overrides: tuple[str, ...]) -> DictConfig:
        composed = self.context.config_loader.load_sweep_config(self._master, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        return composed


def _in_a_sweep(config: Config, study: str | None, title: str) -> Config:
    """No bar, for nobody watches it; in W&B a study's runs share a group and a tag.

    There they are called by what sets them apart.
    """
    name = study or "sweep"
    given = config.logger
    tags = list(dict.fromkeys([*given.tags, name]))
    what = f"{config.model.label} {config.peft.method} {config.qpa.variant} {title}"
    logger = dataclasses.replace(
        given, group=given.group or name, tags=tags, run_name=given.run_name or what
    )
    trainer = dataclasses.replace(config.trainer, progress_bar=False)
    return dataclasses.replace(config, logger=logger, trainer=trainer)


def _shape(config: Config) -> str:
    """Return what the counts of a run depend on, and a little more: seeds left out."""
    qpa = dataclasses.asdict(config.qpa) | {"seed": None}
    model, peft = dataclasses.asdict(config.model), dataclasses.asdict(config.peft)
    text = config.data.path, config.data.max_length  # a classifier has the classes of its text
    return json.dumps([config.task, model, peft, qpa, *text], default=str)
