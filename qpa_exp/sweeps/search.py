"""A search by Optuna: for the best metric of the task with the fewest trainable parameters.

Hydra's own Optuna sweeper needs Optuna 2, whose storage does not work with today's SQLAlchemy, so
this asks Optuna itself. Trials are kept in a file beside the study's record: a search that was
stopped goes on, and the run that it was at is resumed. What counts is the metric of the validation
split; the test split is only reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import check_file, made
from qpa_exp.runs.directory import State, error_of, validation_of_kept
from qpa_exp.sweeps.prepare import MOST_RUNS, Job, Preparation, expand, spell
from qpa_exp.sweeps.run_name import digest, relevant
from qpa_exp.sweeps.runner import Runner, SweepFailed, announce, unique
from qpa_exp.sweeps.studies import Study, record_directory, record_study, say
from qpa_exp.task import TASKS

STORAGE = "optuna.db"


def prepare_search(
    study: Study, preparation: Preparation, runner: Runner, master: DictConfig, given: Sequence[str]
) -> Callable[[], None]:
    """Return what runs trials until there are ``n_trials``, once the space has been looked at.

    Raises:
        InputError: the space, the fixed part or the command line is not allowed. When it is called:
            :class:`SweepFailed`, at the end, where a run failed.
    """
    assert study.search is not None
    asked = {k: v for k, v in master.hydra.sweeper.search.items() if v is not None}
    study = replace(study, search=replace(study.search, **asked))
    base = _base(study, given, preparation.context.config_loader)
    _check_space(study, base, preparation)

    found = study.search
    assert found is not None
    for key, most in {"n_trials": MOST_RUNS, "batch_size": MOST_RUNS, "seed": 2**31}.items():
        if not (0 if key == "seed" else 1) <= (value := getattr(found, key)) <= most:
            raise InputError(f"hydra.sweeper.search.{key}={value} is out of range: at most {most}.")

    def search() -> None:
        if master.hydra.sweeper.only_plan:
            say(f"Search {study.study}, scale {study.scale}: {found.n_trials} trials.")
            return
        directory = record_directory(master.hydra.sweeper.records, str(study.study), study.scale)
        with _alone(directory):
            trials = Trials(directory, study, base, preparation)
            _run_trials(trials, runner, lambda jobs: record_study(master, study, jobs))

    return search


def _run_trials(trials: Trials, runner: Runner, record: Callable[[Sequence[Job]], None]) -> None:
    study, jobs = trials.study, trials.finished_jobs()
    say(f"Search {study.study}: {len(jobs)} of {trials.options.n_trials} trials are done.")
    while batch := trials.ask():
        announce([job for _, job in batch], study.title_line)
        jobs += [job for _, job in batch]
        record(unique(jobs))
        runner.run([job for _, job in batch])
        for trial, job in batch:
            trials.tell(trial, job)
    for line in trials.front():
        say(line)
    trials.raise_failures()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the record of a search: two in one would take each other's trials for abandoned ones.

    Raises:
        InputError: another process is at it, or the record cannot be written any more.
    """
    try:
        with made(directory), FileLock(directory / f".{STORAGE}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"{directory} is being searched by another process already.") from error
    except (SQLAlchemyError, StorageInternalError) as error:  # a full disk, for one
        raise InputError(
            f"{directory / STORAGE} cannot be used any more ({first_line(error)}): mend that, and "
            "start the search again, which goes on."
        ) from error


def _base(study: Study, given: Sequence[str], loader: ConfigLoader) -> dict[str, str]:
    """Return what all trials share."""
    fixed = dict(study.fixed)
    if isinstance(fixed.get("seed"), list):  # a search looks at many settings, each under one seed
        fixed["seed"] = fixed["seed"][0]
    runs = expand(study.parts, fixed, given, loader)
    if len(runs) != 1:
        raise InputError(
            f"A search has one fixed part, and this describes {len(runs)} runs: give each key one "
            "value, and lists in the study's search.space."
        )
    return runs[0]


def _check_space(study: Study, base: Mapping[str, str], preparation: Preparation) -> None:
    """Refuse a key or a value of the space before any trial."""
    assert study.search is not None
    if not study.search.space:
        raise InputError(f"The search.space of {study.study} is empty: name keys and their values.")
    for key, values in study.search.space.items():
        for value in values:
            preparation.job({**base, key: spell(value)}, "", study.study)


class Trials:
    """Optuna's trials of one search, and the runs that they stand for."""

    def __init__(
        self, directory: Path, study: Study, base: Mapping[str, str], preparation: Preparation
    ) -> None:
        assert study.search is not None
        self.study, self.options = study, study.search
        self._base, self._preparation = base, preparation
        self._failures: list[str] = []
        config = preparation.job(base, "", study.study).config
        self._metric = TASKS[config.task].ranked_by()
        directions = ["minimize" if self._metric.smaller_is_better else "maximize", "minimize"]
        # Trials of another config or space are those of another search.
        searched = digest([relevant(config), self.options.space, self._metric.name])
        name = f"{study.study}-{searched}"
        self._trials = _open(directory / STORAGE, name, self.options.seed, directions)
        self._requeue()

    def _requeue(self) -> None:
        """Queue again, as it was, a trial that was running when the search was stopped."""
        for trial in self._trials.get_trials(states=[TrialState.RUNNING]):
            self._trials.tell(trial.number, state=TrialState.FAIL)
            self._trials.enqueue_trial(trial.params)

    def finished_jobs(self) -> list[Job]:
        """Return the runs of the trials that have ended well."""
        return [self._job(trial.params) for trial in self._complete()]

    def ask(self) -> list[tuple[Trial, Job]]:
        """Return the next batch; empty once there are enough."""
        batch: list[tuple[Trial, Job]] = []
        while not batch and self._left() > 0:  # a trial that is refused counts as one
            for _ in range(min(self._left(), self.options.batch_size)):
                trial = self._trials.ask()
                for key, values in self.options.space.items():
                    trial.suggest_categorical(key, list(values))
                try:
                    batch.append((trial, self._job(trial.params)))
                except InputError as error:  # values that do not go together
                    self._fail(trial, str(error))
        return batch

    def _left(self) -> int:
        return self.options.n_trials - len(self._complete()) - len(self._failures)

    def tell(self, trial: Trial, job: Job) -> None:
        """Hand a run's result to Optuna."""
        if job.state is not State.complete:
            self._fail(trial, f"{job.label}: {error_of(job.run_dir) or 'ended without a result'}")
            return
        validation = validation_of_kept(job.run_dir, self._metric.name)
        if validation is None:
            self._fail(trial, f"{job.label}: it ended before the validation split was looked at")
            return
        self._trials.tell(trial, [validation, float(job.counts.trainable_params)])

    def front(self) -> list[str]:
        """Return the trials that no other beats in both, fewest parameters first, in words."""
        best = sorted(self._trials.best_trials, key=lambda trial: trial.values[1])
        return [
            f"on the front: {_label(trial.params)}: validation {self._metric.name} "
            f"{trial.values[0]:.4g}, {trial.values[1]:,.0f} trainable parameters"
            for trial in best
        ]

    def raise_failures(self) -> None:
        """Raise SweepFailed where a trial of this call failed."""
        for failure in self._failures:
            say(f"failed: {failure}")
        if self._failures:
            raise SweepFailed(f"{len(self._failures)} trials failed, listed above.")

    def _complete(self) -> list[FrozenTrial]:
        return self._trials.get_trials(states=[TrialState.COMPLETE])

    def _fail(self, trial: Trial, why: str) -> None:
        self._trials.tell(trial, state=TrialState.FAIL)
        self._failures.append(why)

    def _job(self, values: Mapping[str, Any]) -> Job:
        run = {**self._base, **{key: spell(value) for key, value in values.items()}}
        return self._preparation.job(run, _label(values), self.study.study)


def _label(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={spell(value)}" for key, value in values.items())


def _open(path: Path, name: str, seed: int, directions: Sequence[Any]) -> optuna.Study:
    """Return the search in this file, begun here where there is none.

    Raises:
        InputError: the file is something else, or damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        check_file(path, "")
        if path.is_file() and not _is_database(path):
            raise ValueError("it is no database of SQLite's")
        study = optuna.create_study(
            storage=URL.create("sqlite", database=str(path)).render_as_string(),
            study_name=name, directions=directions, load_if_exists=True,
        )  # fmt: skip
        seen = len(study.trials)
    except InputError:
        raise
    except Exception as error:  # SQLite's, SQLAlchemy's, Optuna's, and what damage leads them to
        raise InputError(
            f"{path} is not the record of this search, or is damaged ({first_line(error)[:150]}): "
            "take it away to begin the search anew; complete runs are kept."
        ) from error
    # A search that goes on must not draw again what it drew at its start.
    study.sampler = optuna.samplers.TPESampler(seed=seed + seen)
    return study


def _is_database(path: Path) -> bool:
    """Whether a file begins as SQLite's do; an empty one becomes one."""
    with path.open("rb") as file:
        return file.read(16) in (b"SQLite format 3\0", b"")
