"""``qpa-exp reproduce``: run studies and write their figures and tables.

The same: ``python -m qpa_exp.reproduce``. It is the sweep ``qpa-exp -m sweep=<studies>``, in which
runs that studies share are made once, and then a report for each. Keys of the runs or the launcher
are passed on. Where the scale says so, runs go side by side, one to a core, unless a launcher is
named.

Examples:
  qpa-exp reproduce studies=fig2,table2                 on the bundled model
  qpa-exp reproduce studies=all scale=smoke             every study, two steps of a few points
  qpa-exp reproduce studies=fig2 scale=paper            at the scales at which the paper has it
  qpa-exp reproduce studies=fig2 hydra.sweeper.only_plan=true    only say what would run
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from qpa_exp.__main__ import run_sweep
from qpa_exp.cli import (
    check_key,
    conf_dir,
    known_keys,
    option,
    options_page,
    run_command,
    split_options,
)
from qpa_exp.errors import InputError, nearest
from qpa_exp.files import typed_path
from qpa_exp.machine import free_memory
from qpa_exp.sweeps.studies import (
    points_of,
    record_directory,
    register_studies,
    runs_side_by_side,
    study_names,
    sweeps_dir,
)

register_studies(sweeps_dir())
PAPER = "paper"
_BYTES_OF_A_RUN = 3 * 2**29
"""The memory of a run with the bundled model."""


@dataclass
class ReproduceOptions:
    """What the command takes beside the keys of its runs."""

    studies: str | None = option("studies of sweeps/, separated by commas; all for every one", None)
    scale: str = option("tiny, smoke, paper, or another of sweeps/scale/", "tiny")
    out: str = option("where runs and reports go", "outputs")


ReportTask = tuple[list[str], str, Path]
"""The records of a study, its name, and where its report goes."""


def main(arguments: list[str]) -> None:
    """Reproduce the studies that ``studies=`` names, at ``scale=``."""
    options, rest = split_options(ReproduceOptions, arguments)
    _check_rest(rest)
    if options.studies is None:
        raise InputError(
            "studies is missing: give studies=<one or several of "
            f"{', '.join(study_names())}>, or studies=all for every one of them."
        )
    scale, out = options.scale, typed_path(options.out)
    at = {name: scales(name, scale) for name in chosen(options.studies, scale)}
    places = list(dict.fromkeys(place for of_one in at.values() for place in of_one))
    failed: list[str] = []
    for place in places:
        studies = [name for name in at if place in at[name]]
        print(f"--- scale {place}: {', '.join(studies)}", flush=True)
        failed += [f"{name} ({place})" for name in _sweep(studies, place, out, rest)]
    processes = max((side_by_side(place, rest) for place in places), default=1)
    failed += _report_all(at, out, processes)
    if failed:
        raise InputError(f"{len(failed)} did not complete, see above: {', '.join(failed)}.")


def _check_rest(overrides: list[str]) -> None:
    """Refuse what is no key of a run: it would be found out study by study."""
    own = [item.name for item in fields(ReproduceOptions)]
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            studies = f": write studies={override}" if override in study_names() else ""
            raise InputError(f"{override} is no option of reproduce{studies or ', see --help'}.")
        check_key(override)
        if re.fullmatch(r"\w+", key) and key not in (*groups, *known_keys()):
            near = nearest(key, [*own, *groups, *known_keys()], n=1) or own
            near = own if key == "sweep" else near  # as python -m qpa_exp -m has it
            raise InputError(f"{key} is no option of reproduce: did you mean {near[0]}=...?")


def chosen(studies: str, scale: str) -> list[str]:
    """Return the names in ``studies``, separated by commas.

    For ``all`` each that exists at the scale.

    Raises:
        InputError: one of them has no file in ``sweeps/``.
    """
    known = study_names()
    if studies == "all":
        return [name for name in known if scale == PAPER or scale in points_of(name)]
    names = studies.split(",")
    for name in names:
        if name not in known:
            near = nearest(name, known) or known
            raise InputError(f"studies={name} is unknown: did you mean {' or '.join(near)}?")
    return names


def scales(study: str, scale: str) -> list[str]:
    """Return the scale itself; for ``paper`` those at which the paper has the study."""
    if scale != PAPER:
        return [scale]
    return [place for place, points in points_of(study).items() if points.get("paper")]


def side_by_side(scale: str, rest: list[str]) -> int:
    """How many runs at once: as there are cores and memory for, where that is faster.

    Args:
        scale: says whether it is.
        rest: what the user says about launchers holds.
    """
    named = any(argument.startswith(("hydra/launcher", "hydra.launcher")) for argument in rest)
    there = importlib.util.find_spec("joblib") is not None
    if named or not there or not runs_side_by_side(scale):
        return 1
    return max(1, min(os.cpu_count() or 1, free_memory() // _BYTES_OF_A_RUN))


def _sweep(studies: list[str], scale: str, out: Path, rest: list[str]) -> list[str]:
    """Those that failed."""
    places = [f"hydra.sweep.dir={out / 'runs'}", f"hydra.sweeper.records={out / 'studies'}"]
    more = ["hydra.sweeper.keep_going=true", *places]
    if (processes := side_by_side(scale, rest)) > 1:
        more.append(f"hydra.sweeper.side_by_side={processes}")
    from qpa_exp.sweeps.sweep import StudiesFailed

    try:
        run_sweep([f"sweep={','.join(studies)}", f"scale={scale}", *more, *rest])
    except StudiesFailed as error:
        return error.studies
    return []


def _report_all(at: dict[str, list[str]], out: Path, processes: int) -> list[str]:
    """Write the report of every study that has a record; say which failed."""
    records = {
        name: [record_directory(out / "studies", name, place) for place in of_one]
        for name, of_one in at.items()
    }
    found = {name: [str(r) for r in of_one if r.is_dir()] for name, of_one in records.items()}
    tasks = [(there, name, out / "reports") for name, there in found.items() if there]
    failed = []
    for (_, name, _), (said, error) in zip(
        tasks, side_by_side_reports(tasks, processes), strict=True
    ):
        print(said, end="", flush=True)
        if error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed.append(f"the report of {name}")
    return failed


def side_by_side_reports(tasks: list[ReportTask], processes: int) -> Iterator[tuple[str, str]]:
    """Yield what :func:`_report` returns for each; of a process that was killed, that it was."""
    if processes == 1:
        yield from map(_report, tasks)
        return
    from joblib import Parallel, delayed  # which the launcher of the runs needs, too

    parallel, done = Parallel(n_jobs=processes, return_as="generator"), 0
    try:
        for made in parallel(delayed(_report)(task) for task in tasks):
            done += 1
            yield made
    except BrokenExecutor:  # a process was killed, and joblib has ended the others, too
        for task in tasks[done:]:
            try:
                yield from Parallel(n_jobs=2)([delayed(_report)(task)])
            except BrokenExecutor:
                yield "", f"the report of {task[1]} was not written: its process was killed"


def _report(task: ReportTask) -> tuple[str, str]:
    """Return what the report of one study says, and what is wrong, if anything."""
    from qpa_exp.report.__main__ import report

    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            report(*task)
        except InputError as error:
            return said.getvalue(), str(error)
    return said.getvalue(), ""


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, ReproduceOptions))
