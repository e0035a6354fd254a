"""A sweep: plan every study that was chosen, then run what is not complete.

Every run has a directory that follows from its content, under ``hydra.sweep.dir``, which all
sweeps share: a run that is complete is not made again, by whichever sweep, and one that was
interrupted goes on from its checkpoint. Runs hold a lock, so two sweeps at once share the work.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig

from qpa_exp.errors import InputError
from qpa_exp.sweeps.prepare import Job, Preparation, expand, values_of
from qpa_exp.sweeps.runner import Runner, SweepFailed, announce, finish
from qpa_exp.sweeps.studies import Study, own_sweep, read_study, record_study, study_names


class StudiesFailed(SweepFailed):
    """Says which of several studies, which were to keep going, did not come to their end.

    Attributes:
        studies: their names.
    """

    def __init__(self, studies: Sequence[str]) -> None:
        super().__init__(f"{len(studies)} did not complete, see above: {', '.join(studies)}.")
        self.studies = list(studies)


Chosen = tuple[str | None, Callable[[], Study]]


def choose(
    master: DictConfig, arguments: Sequence[str], loader: ConfigLoader
) -> tuple[list[Chosen], list[str]]:
    """Return the studies that ``sweep=`` and ``scale=`` choose, still to be read, and the other
    arguments.

    Without ``sweep=`` it is one: what the command line says.

    Raises:
        InputError: several scales.
    """
    names, scales, given = [master.hydra.sweeper.study], [], []
    for override in OverridesParser.create(loader).parse_overrides(list(arguments)):
        if override.key_or_group == "sweep":
            names = values_of(override)
        elif override.key_or_group == "scale":
            scales = values_of(override)
        else:
            given.append(str(override.input_line))
    if len(scales) > 1:
        raise InputError(f"scale={','.join(scales)} is more than one: sweep at one after another.")
    scale, named = master.hydra.sweeper.scale or "none", bool(scales)
    if names[0] is None or (names[0] not in study_names() and len(names) == 1):
        return [(names[0], lambda: own_sweep(names[0], scale, at_scale=named))], given
    return [(name, functools.partial(read_study, name, scale)) for name in names], given


def sweep(context: HydraContext, master: DictConfig, arguments: Sequence[str]) -> None:
    """Run every run that ``arguments`` and the chosen studies describe.

    Raises:
        InputError: something that was given is not allowed; nothing has run then.
        SweepFailed: at the end, where a run failed.
    """
    chosen, given = choose(master, arguments, loader := context.config_loader)
    options, preparation = master.hydra.sweeper, Preparation(context, master)
    runner = Runner(context, master)
    planned: list[tuple[Study, list[Job]]] = []
    searches: list[tuple[Study, Callable[[], None]]] = []
    failed: list[str] = []

    def attempt(study: str | None, step: Callable[[], None]) -> None:
        try:
            step()
        except InputError as error:
            if not options.keep_going:
                raise
            print(f"error: {study}: {error}", file=sys.stderr, flush=True)
            failed.append(str(study))

    def plan(study: Study) -> None:
        if study.search is not None:
            try:
                from qpa_exp.sweeps.search import prepare_search
            except ImportError as error:
                raise InputError("A search needs Optuna: pip install 'qpa-exp[sweeps]'.") from error
            searches.append((study, prepare_search(study, preparation, runner, master, given)))
            return
        jobs = preparation.jobs(expand(study.parts, study.fixed, given, loader), study.study)
        announce(jobs, study.title_line)
        planned.append((study, jobs))

    for name, read in chosen:
        attempt(name, lambda read=read: plan(read()))  # type: ignore[misc]
    if not options.only_plan:
        for study, jobs in planned:
            record_study(master, study, jobs)
        runner.run([job for _, jobs in planned for job in jobs])
        for study, jobs in planned:
            attempt(study.study, lambda jobs=jobs: finish(jobs))  # type: ignore[misc]
    for study, search in searches:
        attempt(study.study, search)
    if failed:
        raise StudiesFailed(failed)
