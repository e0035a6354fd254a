"""``qpa-exp score``: the perplexity of a language model as it is; nothing is trained or written.

The same: ``python -m qpa_exp.score``. It takes the keys of a run and reads those of the model and
the text. A run has these figures of its base model, too, as ``base_perplexity`` and so on.

Examples:
  qpa-exp score                                          the bundled model and text
  qpa-exp score model=hf model.name_or_path=<hub id> data=text data.path=<file>
  qpa-exp score model=hf model.name_or_path=<export>     what format=merged has written
  qpa-exp score split=validation format=json             another split; for a program
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table

from qpa_exp.cli import compose_config, option, options_page, run_command, split_options
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs.directory import finite


@dataclass
class ScoreOptions:
    """What the command takes beside the keys of a run."""

    split: str = option("test or validation", "test", choices=("test", "validation"))
    format: str = option("table or json", "table", choices=("table", "json"))


def main(arguments: list[str]) -> None:
    """Measure the language model that these Hydra overrides describe."""
    options, overrides = split_options(ScoreOptions, arguments)
    config = compose_config(overrides)
    figures = score(config, options.split)
    if options.format == "json":
        print(json.dumps(finite(figures)))
        return
    table = Table(title=f"model={config.model.name} data={config.data.name}", show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    Console().print(table)


def score(config: Config, split: str = "test") -> dict[str, float]:
    """Return the task's figures of the language model alone, under the names of ``metrics.json``.

    Args:
        config: of a run; ``trainer.limit_eval_batches`` and ``trainer.accelerator`` hold.
        split: ``test`` or ``validation``.

    Raises:
        InputError: the task is not that of language models; or the model, the text or the machine
            are not as asked for.
    """
    import torch

    from qpa_exp.adapters.catalogue import check_length
    from qpa_exp.lm.loading import load_architecture, n_positions
    from qpa_exp.runs.callbacks import Stopwatch
    from qpa_exp.runs.module import Means
    from qpa_exp.runs.train import root_device
    from qpa_exp.task import TASKS

    task = TASKS[config.task](config, Stopwatch())
    if not task.writes_text:
        raise InputError(f"task={config.task} is measured after training alone: give it to a run.")
    check_length(config, n_positions(load_architecture(config.model)))
    data = task.data()
    data.setup()
    device = root_device(config)
    model: Any = task.load_model(data.tokenizer, data.corpus.class_names)
    task.check_model(model)
    data.check_tokens(model)
    model, means = model.to(device), Means(task).to(device)
    examples = data.examples[split]
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    with torch.no_grad():
        for batch in islice(loader, config.trainer.limit_eval_batches):
            there: Any = {name: tensor.to(device) for name, tensor in batch.items()}
            means.update(task.measure(model, there))
    figures = means.take("", examples.size)
    return figures | ({"tokens": examples.size.tokens} if examples.size is not None else {})


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, ScoreOptions))
