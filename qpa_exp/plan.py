"""``python -m qpa_exp.plan``: what a run would train, from its config alone.

No weights, no network: ``python -m qpa_exp.plan model=gpt2 peft.r=4 qpa.n_mlp=2048``. Add
``format=json`` for one JSON object on standard output, with the keys of ``metrics.json``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.catalogue import virtual_tokens
from qpa_exp.adapters.counts import Counts, describe, plan_counts
from qpa_exp.cli import compose_config, run_command
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import check_length, load_architecture

FORMATS = ("table", "json")


def plan(config: Config) -> Counts:
    """The sizes of the run that ``config`` describes.

    Raises:
        InputError: a target that the model does not have, too many qubits, too long examples.
    """
    architecture = load_architecture(config.model)
    check_length(config.model, architecture, config.data.max_length, virtual_tokens(config))
    return plan_counts(config, architecture)


def main(arguments: list[str]) -> None:
    """Plan the run that these Hydra overrides describe."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    formats = [a.removeprefix("format=") for a in arguments if a.startswith("format=")]
    chosen = formats[-1] if formats else "table"
    if chosen not in FORMATS:
        raise InputError(f"format={chosen} is unknown: give one of {', '.join(FORMATS)}.")
    config = compose_config([a for a in arguments if not a.startswith("format=")])
    counts = plan(config)
    if chosen == "json":
        print(json.dumps(as_record(counts)))
    else:
        Console().print(as_table(config, counts))


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
