"""``qpa-exp plan``: what a run would train, from its config alone. ``python -m qpa_exp.plan``.

Takes the keys of a run, see ``qpa-exp train --help``. No weights and no network are needed;
``show=data`` reads the data and the tokenizer; ``task=seq_cls`` counts the classes of data that
lies here.

Examples:
  qpa-exp plan model=gpt2 peft.r=4 qpa.n_mlp=2048
  qpa-exp plan model=gemma2 format=json            one JSON object, for a program
  qpa-exp plan qpa.n_mlp=2048 draw=circuit.svg     Qiskit's drawing of the circuit
  qpa-exp plan data=text data.path=<file> show=data    the first example as the model sees it
  qpa-exp plan qpa.shots=20x price=fake_torino     shots and hours of one run on a device
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.counts import Counts, describe
from qpa_exp.cli import compose_config, option, options_page, run_command, split_options
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import typed_path
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.task import TASKS

if TYPE_CHECKING:
    from qpa_exp.circuits.device_price import DevicePrice


@dataclass
class PlanOptions:
    """What the command takes beside the keys of a run."""

    format: str = option(
        "table, or json with the keys of metrics.json", "table", choices=("table", "json")
    )
    draw: str = option("the circuit: true for text, or <file>.png|svg|pdf", "false")
    show: str = option("data: the first example, its tokens, and which carry loss", "false")
    price: str | None = option("fake_torino or fake_fez: what one run costs on it", None)
    steps: str | None = option("of that run [trainer.max_steps, or 1000]", None)


def main(arguments: list[str]) -> None:
    """Plan the run that these Hydra overrides describe."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    options, overrides = split_options(PlanOptions, arguments)
    output, drawing = options.format, options.draw
    config = compose_config(overrides)
    _check_drawing(config, output, drawing)
    steps = _steps(config, options)
    if options.show not in ("data", "false"):
        raise InputError(f"show={options.show:.100} is unknown: give show=data.")
    counts = plan(config)
    example = first_example(config) if options.show == "data" else None
    priced = None if options.price is None else _price(config, counts, options.price)
    if output == "json":
        record = as_record(counts) | ({"example": example} if example else {})
        print(json.dumps(record | (price_record(priced, steps) if priced else {})))
    else:
        Console().print(as_table(config, counts))
        if priced:
            Console().print(price_table(priced, steps))
        if example:
            print(as_lines(example))
    if drawing != "false" and counts.n_qubits is not None:
        _draw(config, counts.n_qubits, drawing)


def plan(config: Config) -> Counts:
    """Return the sizes of the run that ``config`` describes, from its shapes alone.

    Raises:
        InputError: a target that the model does not have, too many qubits, too long examples.
    """
    return TASKS[config.task].plan(config)


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


_STEPS = 1_000
"""The steps of a priced run, where nothing says how long it is."""


def _steps(config: Config, options: PlanOptions) -> int:
    given = options.steps
    if given is None:
        return config.trainer.max_steps if config.trainer.max_steps > 0 else _STEPS
    if options.price is None:
        raise InputError(f"steps={given} has no effect without price=<device>.")
    if not given.isdecimal() or len(given) > 12 or int(given) < 1:
        raise InputError(f"steps={given} is no number of steps: give a whole number from 1 up.")
    return int(given)


def _price(config: Config, counts: Counts, device: str) -> DevicePrice:
    from qpa_exp.circuits.device_price import price

    if counts.n_qubits is None:
        raise InputError(f"price={device}: qpa={config.qpa.variant} has no circuit.")
    return price(config.qpa, counts.n_qubits, device)


def price_record(priced: DevicePrice, steps: int) -> dict[str, Any]:
    """Return the price under ``device``: its own fields, and seconds by gradient rule."""
    seconds = {rule: priced.seconds(rule, steps) for rule in priced.circuits}
    return {"device": dataclasses.asdict(priced) | {"steps": steps, "seconds": seconds}}


def price_table(priced: DevicePrice, steps: int) -> Table:
    """Return the same for a person, with the formula."""
    table = Table(
        title=f"One run on {priced.device} ({priced.record})",
        show_header=False,
        caption="seconds = steps x circuits x shots x (duration + delay); durations and delay are "
        "those of the device's snapshot. Queue and each job's own overhead are not in it.",
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    microseconds = f"{1e6 * priced.duration:.2f}, {1e6 * priced.delay:.0f}"
    table.add_row("qubits, angles", f"{priced.n_qubits}, {priced.n_angles:,}")
    table.add_row("gates, of them on two qubits", f"{priced.gates:,}, {priced.two_qubit_gates:,}")
    table.add_row("depth", f"{priced.depth:,}")
    table.add_row("duration, delay (microseconds)", microseconds)
    table.add_row("shots of a circuit", f"{priced.shots:,}")
    table.add_row("steps", f"{steps:,}")
    for rule, circuits in priced.circuits.items():
        table.add_row(f"circuits of a step, {rule}", f"{circuits:,}")
        table.add_row("  shots in all", f"{circuits * priced.shots * steps:,}")
        hours = priced.seconds(rule, steps) / 3600
        table.add_row("  hours of device time", f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}")
    return table


def as_record(counts: Counts) -> dict[str, Any]:
    """Return the counts under the names of ``metrics.json``, and ``target_percent``."""
    return dataclasses.asdict(counts) | {"target_percent": counts.target_percent}


def first_example(config: Config) -> dict[str, Any]:
    """Return the first example of the training split, token by token.

    Returns:
        ``source``, ``split``, the number of ``examples``; ``input_ids``, ``tokens`` and ``loss``,
        one for each token, those that are padding left out unless they carry loss; ``class`` where
        the example has one; ``position_ids`` where a row holds several examples.

    Raises:
        InputError: the data or the tokenizer cannot be used.
    """
    from qpa_exp.runs.callbacks import Stopwatch

    task = TASKS[config.task](config, Stopwatch())
    data = task.data()
    batch = data.examples["train"][[0]]
    loss = task.scored(batch)[0]
    n = int((batch["attention_mask"][0].bool() | loss).nonzero()[-1:].sum()) + 1
    ids = batch["input_ids"][0, :n].tolist()
    found = {
        "source": data.corpus.source,
        "split": data.splits["train"],
        "examples": len(data.examples["train"]),
        "input_ids": ids,
        "tokens": [data.tokenizer.decode([token]) for token in ids],
        "loss": loss[:n].tolist(),
    }
    if data.corpus.class_names:
        found["class"] = data.corpus.class_names[int(batch["labels"][0])]
    if "position_ids" in batch:
        found["position_ids"] = batch["position_ids"][0, :n].tolist()
    return found


def as_lines(example: dict[str, Any]) -> str:
    """Return the example for a person: runs of tokens that carry loss, and of those that do not."""
    tokens, loss = example["tokens"], example["loss"]
    starts = [position == 0 for position in example.get("position_ids", [])] or [False] * len(loss)
    lines = [
        f"The first of {example['examples']:,} examples of {example['split']} in "
        f"{example['source']}: {len(tokens):,} tokens, {sum(loss):,} carry loss"
    ]
    if "class" in example:
        lines.append(f"class: {example['class']}")
    for place, (token, carries, begins) in enumerate(zip(tokens, loss, starts, strict=True)):
        if place == 0 or carries != loss[place - 1] or begins:
            lines.append(f"{place:>6}  {'loss' if carries else '-':<4}  ")
        lines[-1] += f"[{token}]".replace("\n", "\\n")
    return "\n".join(lines)


def as_table(config: Config, counts: Counts) -> Table:
    """Return the counts for a person."""
    title = f"model={config.model.name} peft={config.peft.method} qpa={config.qpa.variant}"
    table = Table(title=title, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in describe(config, counts).items():
        table.add_row(label, value)
    return table


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, PlanOptions))
