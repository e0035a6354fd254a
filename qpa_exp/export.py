"""``python -m qpa_exp.export``: turn a run into an adapter, a merged model, or a generator file.

``python -m qpa_exp.export run=outputs/... out=adapter format=peft``
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from qpa_exp.adapters.formats import FORMATS, export
from qpa_exp.cli import parse_options, run_command
from qpa_exp.files import typed_path
from qpa_exp.files.whole_directory import check_place
from qpa_exp.lm.loading import load_tokenizer
from qpa_exp.runs.trained import load_run, model_card


@dataclass
class ExportOptions:
    """What the command takes."""

    run: str = MISSING
    out: str = MISSING
    format: str = "peft"
    overwrite: bool = False


def main(arguments: list[str]) -> None:
    """Export the run that these options name."""
    options = parse_options(ExportOptions, arguments)
    out, form = typed_path(options.out), FORMATS[options.format]
    check_place(out, overwrite=options.overwrite)
    trained = load_run(typed_path(options.run))
    card = model_card(trained.config, trained.metrics, form)
    base = trained.config.model.base
    tokenizer = load_tokenizer(trained.config.model) if form.complete else None
    export(
        trained.model, out, options.format, base, card,
        tokenizer=tokenizer, overwrite=options.overwrite,
    )  # fmt: skip
    print(f"Written to {out}")


if __name__ == "__main__":
    run_command(main)
