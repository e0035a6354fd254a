"""``qpa-exp generate``: write text with a trained run, beside its base model.

The same: ``python -m qpa_exp.generate``.

Examples:
  qpa-exp generate run=<run> prompt="The with statement"
  qpa-exp generate run=<run> prompt="The with statement" temperature=0.8 seed=1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from qpa_exp.cli import option, options_page, parse_options, run_command
from qpa_exp.config import MOST_SEED, Config
from qpa_exp.errors import InputError
from qpa_exp.files import typed_path
from qpa_exp.task import TASKS

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from qpa_exp.runs.trained import TrainedRun

_COLDEST, _HOTTEST = 1e-3, 1e2


@dataclass
class GenerateOptions:
    """What the command takes."""

    run: str = option("the directory of a complete run")
    prompt: str = option("the text to go on from")
    max_new_tokens: int = option("how much to write", 40, least=1, most=2**20)
    temperature: float = option("of the sampling; 0 = always the likeliest token", 0.0)
    seed: int = option("of the sampling", 0, least=0, most=MOST_SEED)


def main(arguments: list[str]) -> None:
    """Write with the run that these options name."""
    options = parse_options(GenerateOptions, arguments)
    check(options)
    from qpa_exp.lm.loading import check_known, load_tokenizer
    from qpa_exp.runs.directory import read_config
    from qpa_exp.runs.trained import load_run

    run_dir = typed_path(options.run)
    config = read_config(run_dir)
    if not TASKS[config.task].writes_text:
        raise InputError(f"{options.run} is of task={config.task}, which writes no text.")
    tokenizer = load_tokenizer(config.model)
    prompt = tokenizer(options.prompt, return_tensors="pt")
    check_length(prompt["input_ids"].shape[1], options, config)
    console, trained = Console(), load_run(run_dir)
    check_known(prompt["input_ids"], tokenizer, trained.model.language_model())
    for title, text in write(trained, tokenizer, prompt, options).items():
        console.print(Panel(Text(text), title=title, title_align="left"))


def check(options: GenerateOptions) -> None:
    """Refuse what no run can write; nothing has been read."""
    if options.temperature != 0 and not _COLDEST <= options.temperature <= _HOTTEST:
        raise InputError(
            f"temperature={options.temperature} is out of range: give 0, or a number from "
            f"{_COLDEST:g} to {_HOTTEST:g}."
        )
    if not options.prompt:
        raise InputError("prompt= is empty: give some text to go on from.")


def check_length(n: int, options: GenerateOptions, config: Config) -> None:
    """Refuse more tokens than the model has positions for.

    Args:
        n: tokens of the prompt.
        options: of the command.
        config: of the run.
    """
    from qpa_exp.lm.loading import load_architecture, n_positions

    if n == 0:
        raise InputError(f"prompt={options.prompt!r:.200} has no token: give some text.")
    most = n_positions(load_architecture(config.model))
    if most is not None and n + options.max_new_tokens > most:
        raise InputError(
            f"The prompt's {n:,} tokens and max_new_tokens={options.max_new_tokens:,} are more "
            f"than the {most:,} that this model takes: give a shorter prompt or fewer tokens."
        )


def write(
    trained: TrainedRun,
    tokenizer: PreTrainedTokenizerBase,
    prompt: BatchEncoding,
    options: GenerateOptions,
) -> dict[str, str]:
    """Return the prompt continued by the base model and by the adapted one, from the same seed."""
    import torch

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
    run_command(main, lambda: options_page(__doc__, GenerateOptions))
