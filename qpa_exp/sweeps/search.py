"""A search by Optuna: perplexity and trainable parameters are minimised together.

Hydra's own Optuna sweeper needs Optuna 2, whose storage does not work with today's SQLAlchemy, so
this asks Optuna itself. Trials are kept in a file beside the study's record: a search that was
stopped goes on, and the run that it was at is resumed. What is minimised is the validation
perplexity; the test split is only reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from qpa_exp.errors import InputError
from qpa_exp.report.collect import validation_perplexity
from qpa_exp.runs.states import State, error_of
from qpa_exp.sweeps.expand import expand, spell
from qpa_exp.sweeps.manifest import make_manifest, write_manifest
from qpa_exp.sweeps.prepare import Job, Preparation
from qpa_exp.sweeps.progress import say
from qpa_exp.sweeps.sweep import Runner, SweepFailed, announce

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.db"


def search(preparation: Preparation, runner: Runner, given: Sequence[str]) -> None:
    """Run trials until there are ``n_trials``.

    Raises:
        InputError: the space, the fixed part or the command line is not allowed, or Optuna is not
            installed.
        SweepFailed: at the end, where a run failed.
    """
    study = preparation.study()
    base = _base(study, given)
    options = study["search"]
    _check_space(options["space"], base, preparation)
    directory = Path(study["record"])
    with _alone(directory):
        _run_trials(preparation, runner, study, base)


def _run_trials(
    preparation: Preparation, runner: Runner, study: Mapping[str, Any], base: Mapping[str, str]
) -> None:
    options, directory = study["search"], Path(study["record"])
    trials = Trials(directory, study["study"] or "search", options, base, preparation)
    jobs = trials.finished_jobs()
    say(f"Search {study['study']}: {len(jobs)} of {options['n_trials']} trials are done.")
    if study["only_plan"]:
        return
    while batch := trials.ask():
        announce([job for _, job in batch], study["study"], str(study["scale"].get("name", "")))
        jobs += [job for _, job in batch]
        write_manifest(make_manifest(preparation.master, _unique(jobs))[0], directory)
        runner.run(_unique([job for _, job in batch]))
        for trial, job in batch:
            trials.tell(trial, job)
    for line in trials.front():
        say(line)
    trials.raise_failures()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two searches in one file would take each other's trials for abandoned ones."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / f".{STORAGE}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"{directory} is being searched by another process already.") from error


def _base(study: Mapping[str, Any], given: Sequence[str]) -> dict[str, str]:
    """What all trials share."""
    fixed = dict(study["fixed"])
    if isinstance(fixed.get("seed"), list):  # a search looks at many settings, each under one seed
        fixed["seed"] = fixed["seed"][0]
    runs = expand(study["parts"], fixed, given)
    if len(runs) != 1:
        raise InputError(
            f"A search has one fixed part, and this describes {len(runs)} runs: give each key one "
            "value, and lists in hydra.sweeper.search.space."
        )
    return runs[0]


def _check_space(
    space: Mapping[str, Sequence[Any]], base: Mapping[str, str], preparation: Preparation
) -> None:
    """Refuse a key or a value of the space before any trial."""
    if not space:
        raise InputError("hydra.sweeper.search.space is empty: name the keys and their values.")
    for key, values in space.items():
        for value in values:
            preparation.job({**base, key: spell(value)}, "")


def _unique(jobs: Sequence[Job]) -> list[Job]:
    return list({job.run_dir: job for job in jobs}.values())


class Trials:
    """Optuna's trials of one search, and the runs that they stand for."""

    def __init__(
        self,
        directory: Path,
        name: str,
        options: Mapping[str, Any],
        base: Mapping[str, str],
        preparation: Preparation,
    ) -> None:
        self._options, self._base, self._preparation = options, base, preparation
        self._failures: list[str] = []
        self._study = _open(directory / STORAGE, name, int(options["seed"]))
        self._requeue()

    def _requeue(self) -> None:
        """A trial that was running when the search was stopped is run again, as it was."""
        import optuna

        running = self._study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        for trial in running:
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    def finished_jobs(self) -> list[Job]:
        """The runs of the trials that have ended well."""
        return [self._job(trial.params) for trial in self._complete()]

    def ask(self) -> list[tuple[optuna.Trial, Job]]:
        """The next batch; empty once there are enough."""
        batch: list[tuple[optuna.Trial, Job]] = []
        while not batch and self._left() > 0:  # a trial that is refused counts as one
            for _ in range(min(self._left(), int(self._options["batch_size"]))):
                trial = self._study.ask()
                for key, values in self._options["space"].items():
                    trial.suggest_categorical(key, list(values))
                try:
                    batch.append((trial, self._job(trial.params)))
                except InputError as error:  # values that do not go together
                    self._fail(trial, str(error))
        return batch

    def _left(self) -> int:
        return int(self._options["n_trials"]) - len(self._complete()) - len(self._failures)

    def tell(self, trial: optuna.Trial, job: Job) -> None:
        """Hand a run's result to Optuna."""
        if job.state is not State.complete:
            self._fail(trial, f"{job.label}: {error_of(job.run_dir) or 'ended without a result'}")
            return
        validation = validation_perplexity(job.run_dir)
        if validation is None:
            self._fail(trial, f"{job.label}: it ended before the validation split was looked at")
            return
        self._study.tell(trial, [validation, float(job.counts.trainable_params)])

    def front(self) -> list[str]:
        """The trials that no other beats in both, fewest parameters first, in words."""
        best = sorted(self._study.best_trials, key=lambda trial: trial.values[1])
        return [
            f"on the front: {_label(trial.params)}: validation perplexity {trial.values[0]:.4g}, "
            f"{trial.values[1]:,.0f} trainable parameters"
            for trial in best
        ]

    def raise_failures(self) -> None:
        """Raise SweepFailed where a trial of this call failed."""
        for failure in self._failures:
            say(f"failed: {failure}")
        if self._failures:
            raise SweepFailed(f"{len(self._failures)} trials failed, listed above.")

    def _complete(self) -> list[optuna.trial.FrozenTrial]:
        import optuna

        return self._study.get_trials(states=[optuna.trial.TrialState.COMPLETE])

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self._failures.append(why)

    def _job(self, values: Mapping[str, Any]) -> Job:
        run = {**self._base, **{key: spell(value) for key, value in values.items()}}
        return self._preparation.job(run, _label(values))


def _label(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={spell(value)}" for key, value in values.items())


def _open(path: Path, name: str, seed: int) -> optuna.Study:
    try:
        import optuna
    except ImportError as error:
        raise InputError("A search needs Optuna: pip install 'qpa-exp[sweeps]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{path}",
        study_name=name,
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    # A search that goes on must not draw again what it drew at its start.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study
