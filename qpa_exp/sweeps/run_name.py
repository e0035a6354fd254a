"""A run's name follows from its content: the same name is the same run.

It is a hash of what makes the run's result: the config's relevant keys, the text, the model's
files, and the version that the computing code declares. So a run that is complete need not be made
again, and never stands for another one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from qpa_exp.config import Config, DataConfig, ModelConfig
from qpa_exp.data.corpus import CORPORA
from qpa_exp.data.instructions import template_sha256
from qpa_exp.lm.loading import model_files
from qpa_exp.registry import dotted, read_key
from qpa_exp.runs.directory import weights_sha256
from qpa_exp.runs.results_version import RESULTS_VERSION
from qpa_exp.sweeps.without_effect import is_without_effect

_LENGTH = 12

AS_BEFORE = {
    "trainer.keep": "last", "data.join": "eos", "data.stride": None, "model.gguf_file": None,
    "data.subset": None, "data.revision": None, "data.split": None, "data.column": None,
    "data.prompt_column": "prompt", "data.completion_column": "completion",
    "data.chat_template": None, "model.tokenizer": None,
    "init_from": None, "optim.warmup_ratio": None, "trainer.patience": None,
    "trainer.min_delta": 0.0,
    "qpa.mapping": "mlp", "qpa.bond_dim": 8, "qpa.block_size": None, "qpa.blend": None,
    "qpa.blend_hidden": [16],
}  # fmt: skip
"""Keys that came later, each with the value under which a run computes what it did without it, and
so keeps its name."""


def run_name(config: Config, *, reads_text: bool = True) -> str:
    """``<method>-<variant>-<hash>``: the directory of this run.

    Without ``reads_text`` the name tells runs of one sweep apart, and is no run's directory.

    Raises:
        InputError: the corpus cannot be read.
    """
    content = {
        "config": relevant(config),
        "data": data_sha256(config.data) if reads_text else None,
        "model": model_files(config.model),
        "version": RESULTS_VERSION,
    }
    return f"{config.peft.method}-{config.qpa.variant}-{digest(content)}"


def digest(content: Any) -> str:
    """Return a short hash of plain data, in which the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def relevant(config: Config) -> dict[str, Any]:
    """Every key, dotted, that has an effect on the numbers, with its value."""
    values = {key: read_key(config, key) for key in leaves() if not is_without_effect(key)}
    values["data.join"] = config.data.join or CORPORA[config.data.name].join
    values = {key: value for key, value in values.items() if (key, value) not in AS_BEFORE.items()}
    if (template := template_sha256(config.data.chat_template)) is not None:
        values["data.chat_template"] = template
    if config.model.tokenizer is not None:
        other = ModelConfig(name_or_path=config.model.tokenizer)
        values["model.tokenizer"] = model_files(other) or config.model.tokenizer
    if model_files(config.model):  # these say which it is
        del values["model.name_or_path"]
        values.pop("model.gguf_file", None)
    if config.init_from is not None:  # what it starts from, wherever that lies
        values["init_from"] = weights_sha256(config.init_from)
    if config.qpa.variant == "off":  # no generator; what the method starts at follows the seed
        return {k: v for k, v in values.items() if not k.startswith("qpa.") or k in _WITHOUT_QPA}
    return values


_WITHOUT_QPA = ("qpa.variant", "qpa.seed")


@functools.cache
def leaves() -> tuple[str, ...]:
    """Every key of the schema that holds a value."""
    keys = [key for key, _ in dotted(Config())]
    return tuple(key for key in keys if not any(k.startswith(f"{key}.") for k in keys))


def data_sha256(config: DataConfig) -> str:
    """Return the hash of the text that this config reads, as ``metrics.json`` records it."""
    return _data_sha256(json.dumps({name: getattr(config, name) for name in _OF_THE_TEXT}))


_OF_THE_TEXT = (
    "name", "path", "subset", "revision", "split", "train_split", "validation_split", "test_split",
    "column", "text_column", "label_column", "prompt_column", "completion_column",
)  # fmt: skip


@functools.cache
def _data_sha256(given: str) -> str:
    from qpa_exp.data.corpus import load_corpus

    return load_corpus(DataConfig(**json.loads(given))).sha256
