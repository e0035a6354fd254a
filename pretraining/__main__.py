"""``python -m pretraining --out DIR``: train the bundled model again, on the CPU."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import transformers

from pretraining.artefact import library_versions, machine_description, save_all
from pretraining.docstrings import gather_corpus, installed_roots, split_held_out
from pretraining.tokenizer import token_stream, train_tokenizer
from pretraining.training import Recipe, build_model, train
from qpa_exp.cli import run_command
from qpa_exp.errors import InputError

REPORT_EVERY = 50
SAVE_EVERY = 300


def main(arguments: list[str]) -> None:
    """Collect the text, train, and write the model directory."""
    args = parse_args(arguments)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {args.out} cannot be made a directory: {error.strerror}."
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    recipe = Recipe(
        seed=args.seed,
        steps=args.steps,
        batch_tokens=args.batch_tokens,
        peak_lr=args.peak_lr,
        threads=args.threads,
    )
    texts, about = gather_corpus(installed_roots())
    print(f"{about['characters']} characters in {len(texts)} docstrings", flush=True)
    pretrain(recipe, texts, about, args.out, args.report_every, args.save_every)


def pretrain(
    recipe: Recipe,
    texts: Sequence[str],
    about: Mapping[str, Any],
    out: Path,
    report_every: int = REPORT_EVERY,
    save_every: int = SAVE_EVERY,
) -> dict[str, Any]:
    """Train tokenizer and model on `texts`, write them to `out`, return the run's record."""
    training, held_out = split_held_out(texts, recipe.seed, recipe.held_out_percent)
    print(f"{len(training)} training and {len(held_out)} held-out docstrings", flush=True)
    tokenizer = train_tokenizer(training, recipe.vocab_size, recipe.long_block)
    streams = token_stream(tokenizer, training), token_stream(tokenizer, held_out)
    print(f"{len(streams[0])} training and {len(streams[1])} held-out tokens", flush=True)
    record: dict[str, Any] = {
        "recipe": asdict(recipe),
        "corpus": {
            **about,
            "training_tokens": len(streams[0]),
            "held_out_docstrings": len(held_out),
            "held_out_tokens": len(streams[1]),
        },
        "libraries": library_versions(),
        "machine": machine_description(),
    }
    model = build_model(recipe)
    for outcome in train(recipe, model, *streams, report_every, save_every):
        record["outcome"] = outcome
        save_all(model, tokenizer, record, out)
    return record


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Command-line options; the defaults are the recipe of the shipped model.

    Raises:
        InputError: an option that is missing, does not exist, or is out of range.
    """
    parser = _Parser("python -m pretraining", description=main.__doc__)
    default, whole = Recipe(), _number(int, 1)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=whole, default=default.steps)
    parser.add_argument("--seed", type=_number(int, 0), default=default.seed)
    parser.add_argument("--batch-tokens", type=whole, default=default.batch_tokens)
    parser.add_argument("--peak-lr", type=_number(float, 0), default=default.peak_lr)
    parser.add_argument("--threads", type=whole, default=default.threads)
    parser.add_argument(
        "--report-every", type=whole, default=REPORT_EVERY, help="steps between lines"
    )
    parser.add_argument(
        "--save-every", type=whole, default=SAVE_EVERY, help="steps between checkpoints"
    )
    return parser.parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}.")


def _number(kind: type[int] | type[float], least: int) -> Callable[[str], int | float]:
    """Return a reader of finite numbers of this kind that are not too small."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < 2**63:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text} is no {what} of at least {least}")
        return value

    return read


if __name__ == "__main__":
    run_command(main)
