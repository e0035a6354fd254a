"""``python -m qpa_exp.benchmark``: circuits, training steps, memory and growth, side by side.

``--quick`` takes under two minutes, the whole under fifteen. Every figure is measured in this run;
``--json FILE`` keeps them all.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from qpa_exp.benchmarks.suite import PARTS, Suite, show
from qpa_exp.cli import run_command
from qpa_exp.errors import InputError
from qpa_exp.files import check_file, write_json
from qpa_exp.machine import keep_freed_memory


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see python -m qpa_exp.benchmark --help.")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command.

    Raises:
        InputError: an option that does not exist, or a value out of range.
    """
    parser = _Parser("qpa_exp.benchmark", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's own choice by default")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each is timed")
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}"
    )
    options = parser.parse_args(arguments)
    for name in ("threads", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is too small: give at least 1.")
    cores = os.cpu_count() or 1
    if options.threads is not None and options.threads > cores:
        raise InputError(f"--threads {options.threads} is more than the {cores} cores there are.")
    options.only = tuple(options.only.split(","))
    for part in options.only:
        if part not in PARTS:
            raise InputError(f"--only {part} is unknown: give some of {', '.join(PARTS)}.")
    if options.json is not None:
        check_file(options.json, "--json ")
    return options


def main(arguments: list[str]) -> None:
    """Measure, print, and write the record."""
    options = parse(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("qpa_exp").setLevel(logging.INFO)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    suite = Suite(quick=options.quick, rounds=options.rounds)
    for _ in suite.run(options.only):
        if options.json is not None:  # an interruption loses one part, not all
            write_json(options.json, suite.record())
    console = Console()
    show(suite, console if console.is_terminal else Console(width=120))


if __name__ == "__main__":
    run_command(main)
