"""``python -m qpa_exp.report``: runs as tables, figures and one page for each study.

``python -m qpa_exp.report runs=outputs/studies/tiny/fig2`` reads a study, a run, or any directory
above them; several are separated by commas, and may be patterns. ``study=fig2`` takes that study
alone. What is read is never run.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from qpa_exp.cli import parse_options, run_command
from qpa_exp.errors import InputError
from qpa_exp.study.collect import collect
from qpa_exp.study.report import write_report


@dataclass
class ReportOptions:
    """What the command takes."""

    runs: str = MISSING
    study: str | None = None
    out: str = "outputs/reports"


def main(arguments: list[str]) -> None:
    """Report the runs that these options name."""
    options = parse_options(ReportOptions, arguments)
    places = [place for place in options.runs.split(",") if place]
    command = shlex.join(["python", "-m", "qpa_exp.report", *arguments])
    written = 0
    for collected in collect(places, options.study):
        for item in collected.skipped:
            print(f"left out: {item.why}")
        if collected.runs.empty:
            print(f"{collected.study}: no complete run: nothing is written.")
            continue
        page = write_report(collected, Path(options.out), command)
        written += 1
        print(f"{collected.study}: {len(collected.runs)} runs, written to {page}")
    if not written:
        raise InputError(f"runs={options.runs}: there is no complete run to report.")


if __name__ == "__main__":
    run_command(main)
