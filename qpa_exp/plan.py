"""``python -m qpa_exp.plan``: what a run would train, from its config alone.

No weights, no network: ``python -m qpa_exp.plan model=gpt2 peft.r=4 qpa.n_mlp=2048``. Add
``format=json`` for one JSON object on standard output, with the keys of ``metrics.json``, and
``draw=true`` for the circuit in text after the table, or ``draw=<file>.png|svg|pdf`` for a picture.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.counts import Counts, describe
from qpa_exp.cli import compose_config, run_command
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import typed_path
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.runs.check_config import plan

FORMATS = ("table", "json")


def main(arguments: list[str]) -> None:
    """Plan the run that these Hydra overrides describe."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    overrides, options = _split(arguments)
    output, drawing = options.get("format", "table"), options.get("draw", "false")
    if output not in FORMATS:
        raise InputError(f"format={output} is unknown: give one of {', '.join(FORMATS)}.")
    config = compose_config(overrides)
    _check_drawing(config, output, drawing)
    counts = plan(config)
    if output == "json":
        print(json.dumps(as_record(counts)))
    else:
        Console().print(as_table(config, counts))
    if drawing != "false" and counts.n_qubits is not None:
        _draw(config, counts.n_qubits, drawing)


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Hydra's overrides, and this command's own options."""
    ours = [a for a in arguments if a.startswith(("format=", "draw="))]
    options = {key: value for key, _, value in (a.partition("=") for a in ours)}
    return [a for a in arguments if a not in ours], options


def _check_drawing(config: Config, output: str, drawing: str) -> None:
    from qpa_exp.circuits.to_qiskit import check_picture

    if drawing == "false":
        return
    if not VARIANTS[config.qpa.variant].circuit:
        raise InputError(f"draw={drawing}: qpa={config.qpa.variant} has no circuit to draw.")
    if drawing != "true":
        check_picture(typed_path(drawing))
    elif output == "json":
        raise InputError(
            "draw=true writes text beside the JSON of format=json: give draw=<file>.svg."
        )


def _draw(config: Config, n_qubits: int, drawing: str) -> None:
    from qpa_exp.circuits.to_qiskit import draw_picture, draw_text

    if drawing == "true":
        print(draw_text(config.qpa, n_qubits, Console().width))
    else:
        draw_picture(config.qpa, n_qubits, typed_path(drawing))
        print(f"Drawn: {drawing}", file=sys.stderr)


def as_record(counts: Counts) -> dict[str, Any]:
    """The counts under the names of ``metrics.json``, and ``target_percent``."""
    return dataclasses.asdict(counts) | {"target_percent": counts.target_percent}


def as_table(config: Config, counts: Counts) -> Table:
    """The counts for a person."""
    title = f"model={config.model.name} peft={config.peft.method} qpa={config.qpa.variant}"
    table = Table(title=title, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in describe(config, counts).items():
        table.add_row(label, value)
    return table


if __name__ == "__main__":
    run_command(main)
