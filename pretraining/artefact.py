"""What a training run writes: weights, tokenizer, recipe.json and a model card."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from pretraining.docstrings import MIN_SHARED_LINE
from pretraining.tokenizer import END_OF_TEXT

_CARD = """\
# Small GPT-2 trained on Python documentation
{state}
A GPT-2 language model ({recipe[n_layer]} layers, width {recipe[n_embd]}, {recipe[n_head]}
heads, {recipe[long_block]} positions, vocabulary {recipe[vocab_size]}, tied embeddings) trained
from scratch on a CPU. It serves to run the package's experiments without any download. It is far
too small to be useful as a text generator. The weights are stored in float16.

## How it was made

`python -m pretraining --out DIR`: {outcome[steps]} steps, {outcome[tokens_seen]:,}
tokens, {minutes:.0f} minutes on {machine}. Seed {recipe[seed]}.
All settings, library versions and a hash of each source are in `recipe.json`.

The tokenizer is a byte-level BPE trained on the same text; `{end_of_text}` (0) separates
documents.

## Losses (nats a token)

- training, mean of the last reported steps: {outcome[final_training_loss]:.3f}
- held-out docstrings ({recipe[held_out_percent]} %): {losses}

The docstrings of one package resemble each other, so the held-out loss is lower than that of
unrelated English text.

## Text

{corpus[docstrings]:,} distinct docstrings, {corpus[characters]:,} characters, read from
the source files of these packages. {corpus[dropped_as_contaminated]} docstrings that share a
line of at least {min_shared_line} characters with the Python Language Reference
(`pydoc_data.topics`, the evaluation corpus) were dropped.

| source | version | characters | licence |
|---|---|---:|---|
{sources}

The source texts belong to the authors of these packages and stay under the licences named above.
Only the trained weights and the tokenizer's vocabulary are distributed here, not the texts.
"""


def save_all(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, record: Mapping[str, Any], out: Path
) -> None:
    """Write the complete model directory."""
    _save_tokenizer(tokenizer, out)
    _save_model(model, out)
    _write_json(out / "recipe.json", record, indent=2)
    (out / "README.md").write_text(model_card(record), encoding="utf-8")


def model_card(record: Mapping[str, Any]) -> str:
    """README of the model, from the same record as recipe.json."""
    outcome = record["outcome"]
    by_length = outcome["final_held_out_loss_by_block_length"].items()
    return _CARD.format(
        **record,
        state="" if outcome["finished"] else "\n**Checkpoint of an unfinished run.**\n",
        minutes=outcome["wall_seconds"] / 60,
        losses=", ".join(f"{loss:.3f} with blocks of {length}" for length, loss in by_length),
        sources="\n".join(
            f"| {name} | {about['version']} | {about['characters']:,} | {about['licence']} |"
            for name, about in record["corpus"]["sources"].items()
        ),
        end_of_text=END_OF_TEXT,
        min_shared_line=MIN_SHARED_LINE,
    )


def machine_description() -> str:
    """Processor model, number of processors and system; no host name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    model = named.group(1) if named else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} processors, {platform.system()}"


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part in the training."""
    names = ("safetensors", "tokenizers", "torch", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"
    _write_json(path, _read_json(path), separators=(",", ":"))  # compact


def _save_model(model: GPT2LMHeadModel, out: Path) -> None:
    """Weights in float16, with a configuration that loads them as float32."""
    copy.deepcopy(model).half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written as private to the user
    path = out / "config.json"
    # Half precision is a way to store the weights, not to compute with them.
    _write_json(path, {**_read_json(path), "dtype": "float32"}, indent=2)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any, **style: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, **style) + "\n", encoding="utf-8")
