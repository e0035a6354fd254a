"""``python -m qpa_exp.plan``: what a run would train, from its config alone.

No weights, no network: ``python -m qpa_exp.plan model=gpt2 peft.r=4 qpa.n_mlp=2048``. Add
``format=json`` for one JSON object on standard output, with the keys of ``metrics.json``, and
``draw=true`` for the circuit in text after the table, or ``draw=<file>.png|svg|pdf`` for a picture.
``show=data`` reads the data and the tokenizer, and prints the first example of training as the
model sees it: its tokens, and which of them carry loss.
``price=fake_torino`` or ``price=fake_fez`` adds what one run would cost on that device, of
``steps=<n>`` steps; else of ``trainer.max_steps``, or 1,000.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qpa_exp.adapters.counts import Counts, describe
from qpa_exp.cli import compose_config, run_command
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.files import typed_path
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.runs.check_config import plan

if TYPE_CHECKING:
    from qpa_exp.circuits.device_price import DevicePrice

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
    shown, steps = options.get("show", "false"), _steps(config, options)
    if shown not in ("data", "false"):
        raise InputError(f"show={shown:.100} is unknown: give show=data.")
    counts = plan(config)
    example = first_example(config) if shown == "data" else None
    priced = _price(config, counts, options["price"]) if "price" in options else None
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


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Hydra's overrides, and this command's own options."""
    own = ("format=", "draw=", "show=", "price=", "steps=")
    ours = [a for a in arguments if a.startswith(own)]
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


_STEPS = 1_000
"""Of the run whose price is asked for, where nothing says how long it is."""


def _steps(config: Config, options: dict[str, str]) -> int:
    given = options.get("steps")
    if given is None:
        return config.trainer.max_steps if config.trainer.max_steps > 0 else _STEPS
    if "price" not in options:
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
    """What it costs, under ``device``: the price's own fields, and seconds by gradient rule."""
    seconds = {rule: priced.seconds(rule, steps) for rule in priced.circuits}
    return {"device": dataclasses.asdict(priced) | {"steps": steps, "seconds": seconds}}


def price_table(priced: DevicePrice, steps: int) -> Table:
    """The same for a person, with the formula."""
    table = Table(
        title=f"One run on {priced.device} ({priced.record})",
        show_header=False,
        caption="seconds = steps x circuits x shots x (duration + delay); durations and delay are "
        "those of the device's snapshot. Queue and each job's own overhead are not in it.",
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    lines = {
        "qubits, angles": f"{priced.n_qubits}, {priced.n_angles:,}",
        "gates, of them on two qubits": f"{priced.gates:,}, {priced.two_qubit_gates:,}",
        "depth": f"{priced.depth:,}",
        "duration, delay (microseconds)": f"{1e6 * priced.duration:.2f}, {1e6 * priced.delay:.0f}",
        "shots of a circuit": f"{priced.shots:,}",
        "steps": f"{steps:,}",
    }
    for rule, circuits in priced.circuits.items():
        lines[f"circuits of a step, {rule}"] = f"{circuits:,}"
        lines["  shots in all"] = f"{circuits * priced.shots * steps:,}"
        lines["  hours of device time"] = f"{priced.seconds(rule, steps) / 3600:,.1f}"
        for label in list(lines):
            table.add_row(label, lines.pop(label))
    return table


def as_record(counts: Counts) -> dict[str, Any]:
    """The counts under the names of ``metrics.json``, and ``target_percent``."""
    return dataclasses.asdict(counts) | {"target_percent": counts.target_percent}


def first_example(config: Config) -> dict[str, Any]:
    """The first example of the training split, token by token.

    Returns:
        ``source``, ``split``, the number of ``examples``; ``input_ids``, ``tokens`` and ``loss``,
        one for each token, those that are padding left out unless they carry loss; ``class`` where
        the example has one; ``position_ids`` where a row holds several examples.

    Raises:
        InputError: the data or the tokenizer cannot be used.
    """
    from qpa_exp.data.datamodule import ExampleBatches, TextDataModule
    from qpa_exp.lm.loading import load_tokenizer
    from qpa_exp.runs.callbacks import Stopwatch
    from qpa_exp.task import TASKS

    task = TASKS[config.task](config, Stopwatch())
    tokenizer = load_tokenizer(config.model)
    data = TextDataModule(config.data, tokenizer, config.seed, classes=task.predicts_classes)
    batch = ExampleBatches(data.examples["train"])[[0]]
    loss = task.scored(batch)[0]
    n = int((batch["attention_mask"][0].bool() | loss).nonzero()[-1:].sum()) + 1
    ids = batch["input_ids"][0, :n].tolist()
    found = {
        "source": data.corpus.source,
        "split": data.splits["train"],
        "examples": len(data.examples["train"]),
        "input_ids": ids,
        "tokens": [tokenizer.decode([token]) for token in ids],
        "loss": loss[:n].tolist(),
    }
    if task.predicts_classes:
        found["class"] = data.corpus.class_names[int(batch["labels"][0])]
    if "position_ids" in batch:
        found["position_ids"] = batch["position_ids"][0, :n].tolist()
    return found


def as_lines(example: dict[str, Any]) -> str:
    """The example for a person: runs of tokens that carry loss, and of those that do not."""
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
