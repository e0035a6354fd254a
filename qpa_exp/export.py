"""``qpa-exp export``: turn a run into an adapter, a merged model, or a generator file.

The same: ``python -m qpa_exp.export``. What it writes has a model card, ``README.md``, which says
how to load it.

Examples:
  qpa-exp export run=<run> out=adapter                   a plain PEFT adapter
  qpa-exp export run=<run> out=model format=merged       a plain model of transformers
  qpa-exp export run=<run> out=generator format=qpa      angles and mapping model, small
"""

from __future__ import annotations

from dataclasses import dataclass

from qpa_exp.cli import option, options_page, parse_options, run_command
from qpa_exp.files import typed_path
from qpa_exp.files.whole_directory import check_place


@dataclass
class ExportOptions:
    """What the command takes."""

    run: str = option("the directory of a complete run")
    out: str = option("the directory to make")
    format: str = option("peft, merged or qpa", "peft")
    overwrite: bool = option("replace out where it is an export and nothing else", False)
    base_model: str | None = option("the hub id of the language model, where it has one", None)


def main(arguments: list[str]) -> None:
    """Export the run that these options name."""
    options = parse_options(ExportOptions, arguments)
    from qpa_exp.adapters.formats import FORMATS, export
    from qpa_exp.lm.loading import load_tokenizer
    from qpa_exp.runs.trained import base_of, load_run, model_card

    out, form = typed_path(options.out), FORMATS[options.format]
    check_place(out, overwrite=options.overwrite)
    trained = load_run(typed_path(options.run))
    base = base_of(trained.config.model, trained.metrics, form, options.base_model)
    card = model_card(trained, form, base)
    tokenizer = load_tokenizer(trained.config.model) if form.complete else None
    export(
        trained.model, out, options.format, base.name, card,
        base_files=base.files if not form.complete else None,
        tokenizer=tokenizer, overwrite=options.overwrite,
    )  # fmt: skip
    print(f"Written to {out}")


if __name__ == "__main__":
    run_command(main, lambda: options_page(__doc__, ExportOptions))
