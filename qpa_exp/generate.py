"""``python -m qpa_exp.generate``: write text with a trained run, beside its base model.

``python -m qpa_exp.generate run=outputs/... prompt="The with statement"``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from qpa_exp.cli import parse_options, run_command
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_tokenizer
from qpa_exp.runs.trained import TrainedRun, load_run
from qpa_exp.task import TASKS


@dataclass
class GenerateOptions:
    """What the command takes."""

    run: str = MISSING
    prompt: str = MISSING
    max_new_tokens: int = 40
    temperature: float = 0.0
    """0 = always the likeliest token."""
    seed: int = 0


def main(arguments: list[str]) -> None:
    """Write with the run that these options name."""
    options = parse_options(GenerateOptions, arguments)
    if options.max_new_tokens < 1:
        raise InputError(f"max_new_tokens={options.max_new_tokens} is too small: give at least 1.")
    if options.temperature < 0:
        raise InputError(f"temperature={options.temperature} is negative: give 0 or more.")
    if not options.prompt:
        raise InputError("prompt= is empty: give some text to go on from.")
    console, trained = Console(), load_run(Path(options.run))
    if not TASKS[trained.config.task].writes_text:
        raise InputError(f"{options.run} is of task={trained.config.task}, which writes no text.")
    for title, text in write(trained, options).items():
        console.print(Panel(Text(text), title=title, title_align="left"))


def write(trained: TrainedRun, options: GenerateOptions) -> dict[str, str]:
    """The prompt continued by the base model and by the adapted one, from the same seed."""
    tokenizer = load_tokenizer(trained.config.model)
    prompt = tokenizer(options.prompt, return_tensors="pt")
    model: Any = trained.model

    def go_on() -> str:
        torch.manual_seed(options.seed)
        sampling: dict[str, Any] = {"do_sample": options.temperature > 0}
        if options.temperature > 0:
            sampling["temperature"] = options.temperature
        tokens = model.generate(
            **prompt,
            max_new_tokens=options.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **sampling,
        )
        return str(tokenizer.decode(tokens[0], skip_special_tokens=True))

    with model.disable_adapter():
        base = go_on()
    return {"base model": base, "adapted": go_on()}


if __name__ == "__main__":
    run_command(main)
