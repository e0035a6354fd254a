"""``python -m qpa_exp.plan``: what a run would train, from its config alone.

No weights, no network: ``python -m qpa_exp.plan model=gpt2 peft.r=4 qpa.n_mlp=2048``. Add
``format=json`` for one JSON object on standard output, with the keys of ``metrics.json``, and
``draw=true`` for the circuit in text after the table, or ``draw=<file>.png|svg|pdf`` for a picture.
``show=data`` reads the data and the tokenizer, and prints the first example of training as the
model sees it: its tokens, and which of them carry loss.
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
    shown = options.get("show", "false")
    if shown not in ("data", "false"):
        raise InputError(f"show={shown:.100} is unknown: give show=data.")
    counts = plan(config)
    example = first_example(config) if shown == "data" else None
    if output == "json":
        print(json.dumps(as_record(counts) | ({"example": example} if example else {})))
    else:
        Console().print(as_table(config, counts))
        if example:
            print(as_lines(example))
    if drawing != "false" and counts.n_qubits is not None:
        _draw(config, counts.n_qubits, drawing)


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Hydra's overrides, and this command's own options."""
    ours = [a for a in arguments if a.startswith(("format=", "draw=", "show="))]
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
