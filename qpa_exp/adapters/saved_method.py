"""PEFT's config of a method, and its tensors, from files that somebody else may have written."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qpa_exp.adapters.catalogue import METHODS, pefts_types
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import fits, read_plain
from qpa_exp.files.whole_directory import part_of

WEIGHTS, CONFIG = SAFETENSORS_WEIGHTS_NAME, "qpa_config.json"

_OURS_TO_SAY = {
    "auto_mapping", "megatron_config", "megatron_core", "tokenizer_kwargs", "adapters",
    "shadow_model", "prompt_tuning_init_state_dict_path", "layer_replication", "runtime_config",
}  # fmt: skip
"""What PEFT would import, fetch, read or multiply by: never taken from a file."""

_PATTERNS = ("modules", "pattern")
_MOST_REPETITIONS = 4


def peft_config_of(record: Any) -> PeftConfig:
    """PEFT's config from plain data; nothing that it names is imported, fetched or run.

    Raises:
        ValueError: no such method, a key that it does not have or that a file may not set, or a
            value of another type.
    """
    for method in METHODS.own.values():  # makes them known to PEFT, which reads their names
        method.config_class()
    kind = record.get("peft_type") if isinstance(record, dict) else None
    types: dict[Any, Any] = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    if not isinstance(kind, str) or kind not in types or hasattr(types[kind], "method_type"):
        raise ValueError(f"its peft_type is {str(kind)[:100]}, which names no method")
    if kind.lower() in pefts_types():
        _ = METHODS[kind.lower()]
    config_class = types[kind]  # none of those whose tensors are generated
    hints = typing.get_type_hints(config_class)
    known = {item.name: item for item in fields(config_class)}
    given = {key: value for key, value in record.items() if key not in _OURS_TO_SAY}
    for key, value in record.items():
        if key not in known and key not in _OURS_TO_SAY:
            raise ValueError(f"{key[:100]} is no key of PEFT's {kind}")
        if key in _OURS_TO_SAY and value not in (None, getattr(config_class, key, None)):
            raise ValueError(f"{key} is {str(value)[:100]}, which no file may set")
        if key in given and value is not None and not fits(value, hints[key]):
            raise ValueError(f"{key} is {str(value)[:100]}")
        if any(word in key for word in _PATTERNS) and any(map(_is_slow, _patterns(value))):
            raise ValueError(f"{key} is {str(value)[:100]}, a pattern that may take for ever")
    present = {k: v for k, v in given.items() if v is not None or known[k].default is not MISSING}
    config: PeftConfig = config_class(**present)
    return config


def _patterns(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, dict | list) else [value])]


def _is_slow(pattern: str) -> bool:
    """Whether a regular expression may take for ever: a repeated group, or many repetitions."""
    repetitions = sum(letter in "*+{" for letter in pattern)
    return repetitions > _MOST_REPETITIONS or re.search(r"\)[*+{]", pattern) is not None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        InputError: it is missing, damaged or cut short, or a number in it is not finite.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or cut short: {one_line(error)[:200]}.") from error
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise InputError(f"{path}: {name[:100]} holds a number that is not finite.")
    return weights


def read_adapter(source: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return a saved adapter's config and tensors; nothing that they name is imported or run.

    Raises:
        InputError: it is missing or damaged.
    """
    if not (source / CONFIG_NAME).is_file():
        raise InputError(f"{source} is missing: the run's trained adapter is not there.")
    record = read_plain(source / CONFIG_NAME)
    try:
        config = peft_config_of(record)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        why = one_line(error)[:300].rstrip(".")
        raise InputError(f"{source / CONFIG_NAME} is no method's config: {why}.") from error
    return config, load_weights(source / SAFETENSORS_WEIGHTS_NAME)


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, shapes and types."""
    pairs = ({name: (w.shape, w.dtype) for name, w in each.items()} for each in (one, other))
    return next(pairs) == next(pairs)


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write an adapter in PEFT's format, and nothing of the language model."""
    place = Path(directory)
    with part_of(place / "adapter") as part:
        # PEFT would add a copy of the embedding to an adapter on lm_head: it is not trained.
        model.save_pretrained(str(part), save_embedding_layers=False)
        for file in sorted(part.glob("adapter_*"), reverse=True):
            file.replace(place / file.name)
