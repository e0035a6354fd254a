"""``qpa-exp benchmark``: circuits, steps of every method, memory and growth, side by side.

The same: ``python -m qpa_exp.benchmark``. The whole takes twenty minutes; ``--quick`` takes two,
and leaves out the methods. Every figure is measured in this run.

Examples:
  qpa-exp benchmark --quick
  qpa-exp benchmark --json figures.json
  qpa-exp benchmark --only steps --shapes smollm2
  qpa-exp benchmark --only methods --shapes gpt2    every method's step over LoRA's
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from qpa_exp.benchmarks.shapes import PARTS, SHAPES
from qpa_exp.cli import plain_text, run_command
from qpa_exp.errors import InputError
from qpa_exp.files import check_file, write_json

_CHOSEN = {"only": PARTS, "shapes": tuple(SHAPES)}
"""Options that choose some of what there is: parts of the benchmark, and shapes of the steps."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see python -m qpa_exp.benchmark --help.")


def reader() -> argparse.ArgumentParser:
    """Return what reads the options of the command."""
    parser = _Parser(
        "qpa-exp benchmark", description=plain_text(__doc__), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and rounds, and no methods"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's own choice by default")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each is timed")
    for name, there in _CHOSEN.items():
        every = ",".join(there)
        parser.add_argument(
            f"--{name}", type=_names, metavar="A,B", help=f"of {every}; all by default"
        )
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command.

    Raises:
        InputError: an option that does not exist, or a value out of range.
    """
    options = reader().parse_args(arguments)
    for name in ("threads", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is too small: give at least 1.")
    cores = os.cpu_count() or 1
    if options.threads is not None and options.threads > cores:
        raise InputError(f"--threads {options.threads} is more than the {cores} cores there are.")
    if options.quick and options.only is None:
        options.only = tuple(part for part in PARTS if part != "methods")
    for name, there in _CHOSEN.items():
        chosen = getattr(options, name)
        for one in chosen or ():
            if one not in there:
                raise InputError(f"--{name} {one} is unknown: give some of {', '.join(there)}.")
        setattr(options, name, chosen or there)
    if options.json is not None:
        check_file(options.json, "--json ")
    return options


def main(arguments: list[str]) -> None:
    """Measure, print, and write the record."""
    options = parse(arguments)
    import torch
    from rich.console import Console

    from qpa_exp.benchmarks.suite import Suite, show  # imports torch and PEFT: not for --help
    from qpa_exp.machine import keep_freed_memory

    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("qpa_exp").setLevel(logging.INFO)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    shapes = {name: SHAPES[name] for name in options.shapes}
    suite = Suite(quick=options.quick, rounds=options.rounds, shapes=shapes)
    for _ in suite.run(options.only):
        if options.json is not None:  # an interruption loses one part, not all
            write_json(options.json, suite.record())
    console = Console()
    show(suite, console if console.is_terminal else Console(width=120))


if __name__ == "__main__":
    run_command(main, lambda: reader().format_help())
