"""``python -m qpa_exp.reproduce``: run studies and write their figures and tables.

``python -m qpa_exp.reproduce studies=fig2,table2 scale=tiny``; ``studies=all`` is every file of
``sweeps/``. ``scale=paper`` is the scales at which the paper has a study. A study is the sweep
``python -m qpa_exp -m sweep=<study>`` and then its report; further Hydra overrides, of the runs or
the launcher, are passed on to the sweeps. At the scales of the bundled model runs go side by side,
one to a core, unless a launcher is named.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from qpa_exp.__main__ import run_hydra
from qpa_exp.cli import run_command
from qpa_exp.errors import InputError, nearest
from qpa_exp.machine import free_memory
from qpa_exp.report.__main__ import report
from qpa_exp.sweeps.studies import paper_scales, study_names, sweeps_dir

PAPER = "paper"
_ON_A_CPU = ("tiny", "smoke")
_BYTES_OF_A_RUN = 3 * 2**29
"""Of memory, with the bundled model."""


def main(arguments: list[str]) -> None:
    """Reproduce the studies that ``studies=`` names, at ``scale=``."""
    given = dict(a.split("=", 1) for a in arguments if a.startswith(("studies=", "scale=", "out=")))
    rest = [a for a in arguments if not a.startswith(("studies=", "scale=", "out="))]
    names = chosen(given.get("studies", "all"))
    scale, out = given.get("scale", "tiny"), Path(given.get("out", "outputs"))
    failed = []
    for name in names:
        for place in scales(name, scale):
            print(f"--- {name}, scale {place}", flush=True)
            if not _sweep(name, place, out, [*rest, *launcher(place, rest)]):
                failed.append(f"{name} ({place})")
        if not _report(name, scale, out):
            failed.append(f"the report of {name}")
    if failed:
        raise InputError(f"{len(failed)} did not complete, see above: {', '.join(failed)}.")


def chosen(studies: str) -> list[str]:
    """The names in ``studies``, separated by commas; every one for ``all``.

    Raises:
        InputError: one of them has no file in ``sweeps/``.
    """
    known = study_names()
    if studies == "all":
        return known
    names = studies.split(",")
    for name in names:
        if name not in known:
            near = nearest(name, known) or known
            raise InputError(f"studies={name} is unknown: did you mean {' or '.join(near)}?")
    return names


def scales(study: str, scale: str) -> list[str]:
    """The scale itself; for ``paper`` those at which the paper has the study."""
    if scale != PAPER:
        return [scale]
    return paper_scales(OmegaConf.load(sweeps_dir() / f"{study}.yaml"))


def launcher(scale: str, rest: list[str]) -> list[str]:
    """A launcher of as many runs at once as there are cores and memory for, where that is faster.

    Args:
        scale: a run at the others keeps a GPU busy.
        rest: what the user says about launchers holds.
    """
    jobs = min(os.cpu_count() or 1, free_memory() // _BYTES_OF_A_RUN)
    named = any(argument.startswith(("hydra/launcher", "hydra.launcher")) for argument in rest)
    there = importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    if named or not there or jobs < 2 or not scale.startswith(_ON_A_CPU):
        return []
    return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]


def _record(study: str, scale: str, out: Path) -> Path:
    return out / "studies" / scale / study


def _sweep(study: str, scale: str, out: Path, rest: list[str]) -> bool:
    places = [
        f"hydra.sweep.dir={out / 'runs'}",
        f"hydra.sweeper.record={_record(study, scale, out)}",
    ]
    try:
        run_hydra(["-m", f"sweep={study}", f"scale={scale}", *places, *rest])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _report(study: str, scale: str, out: Path) -> bool:
    records = [_record(study, place, out) for place in scales(study, scale)]
    found = [str(record) for record in records if record.is_dir()]
    try:
        if found:
            report(found, study, out / "reports")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    run_command(main)
