"""``qpa-exp report``: runs as tables, figures and one page for each study.

The same: ``python -m qpa_exp.report``. What is read is never run.

Examples:
  qpa-exp report runs=outputs/studies/tiny/fig2           a study
  qpa-exp report runs=outputs/runs                        every run below a directory
  qpa-exp report "runs=outputs/runs/lora-*,other" out=there   patterns, and several places
  qpa-exp report pages=docs/results                       every page there, drawn again
  qpa-exp report counts=true                              the paper's parameter counts and ours
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qpa_exp.cli import option, options_page, parse_options, run_command
from qpa_exp.errors import InputError
from qpa_exp.files import typed_path


@dataclass
class ReportOptions:
    """What the command takes."""

    runs: str | None = option("a study, a run, or a directory above them; a,b for several", None)
    study: str | None = option("this study alone", None)
    out: str = option("where the reports go", "outputs/reports")
    pages: str | None = option("write each study's page there, too; alone: redraw them all", None)
    counts: bool = option("print the paper's parameter counts beside ours, and stop", False)


def main(arguments: list[str]) -> None:
    """Report the runs that these options name."""
    options = parse_options(ReportOptions, arguments)
    if options.counts:
        from qpa_exp.report.tables import counts_page

        print(counts_page(), end="")
        return
    pages = typed_path(options.pages) if options.pages else None
    if options.runs is None and pages is not None:
        from qpa_exp.report.docs_page import redraw

        for page in redraw(pages):
            print(f"written: {page}")
        return
    if options.runs is None:
        raise InputError("runs is missing: give runs=<a study, a run, or a directory of them>.")
    if not options.out.strip():
        raise InputError("out= names no directory: give one.")
    places = list(places_of(options.runs))
    report(places, options.study, typed_path(options.out), pages)


def places_of(runs: str) -> Iterator[str]:
    """Yield the places in a text, with commas between them; a directory's name may have some, too.

    Examples:
        >>> list(places_of("outputs/runs,other/lora-*"))
        ['outputs/runs', 'other/lora-*']
    """
    parts = [part for part in runs.split(",") if part]
    while parts:
        longer = (n for n in range(len(parts), 1, -1) if _is_directory(",".join(parts[:n])))
        taken = next(longer, 1)
        yield ",".join(parts[:taken])
        del parts[:taken]


def _is_directory(place: str) -> bool:
    with suppress(OSError, RuntimeError, ValueError):
        return typed_path(place).is_dir()
    return False


def report(places: list[str], study: str | None, out: Path, pages: Path | None = None) -> None:
    """Write the report of every study in these places, and say what is left out.

    Args:
        places: directories, or patterns for them.
        study: that one alone; None = every one.
        out: the directory of all reports.
        pages: where each study's page goes, too; None = nowhere.

    Raises:
        InputError: a place that does not exist, or nothing complete in any of them.
    """
    from qpa_exp.report.collect import collect, left_out
    from qpa_exp.report.page import PAGE, write_report

    options = [f"runs={','.join(places)}", *([f"study={study}"] if study else []), f"out={out}"]
    command = shlex.join(["python", "-m", "qpa_exp.report", *options])
    written, before = 0, set[Path]()
    with suppress(OSError):  # such a place is refused when it is written to
        before = set(out.glob(f"*/{PAGE}"))
    for collected in collect(places, study):
        for why in left_out(collected.skipped):
            print(f"left out: {why}")
        if collected.runs.empty:
            print(f"{collected.study}: no complete run: nothing is written.")
            continue
        page = write_report(collected, out, command)
        written += 1
        n = len(collected.runs)
        again = ", in place of the report that was there" if page in before else ""
        print(f"{collected.study}: {n} run{'s' * (n > 1)}, written to {page}{again}")
        if pages is not None:
            from qpa_exp.report.docs_page import write_pages

            for place in write_pages(collected, pages):
                print(f"{collected.study}: its page is {place}")
    if not written:
        raise InputError(f"runs={','.join(places)}: there is no complete run to report.")


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, ReportOptions))
