"""PEFT's config of a method, and its tensors, from files that somebody else may have written."""

from __future__ import annotations

import json
import math
import re
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
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
from qpa_exp.errors import InputError, one_line, sentence_end
from qpa_exp.files import fits, read_plain, typed
from qpa_exp.files.whole_directory import part_of

WEIGHTS, CONFIG = SAFETENSORS_WEIGHTS_NAME, "qpa_config.json"

_OURS_TO_SAY = {
    "auto_mapping", "megatron_config", "megatron_core", "tokenizer_kwargs", "adapters",
    "shadow_model", "prompt_tuning_init_state_dict_path", "layer_replication", "runtime_config",
}  # fmt: skip
"""What PEFT would import, fetch, read or multiply by: never taken from a file."""

_PATTERNS = ("modules", "pattern")
_FILES = ("_file", "_path")
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
        if key in given:
            _check_value(key, value, hints[key])
    present = {k: v for k, v in given.items() if v is not None or known[k].default is not MISSING}
    config: PeftConfig = config_class(**present)
    return config


def _check_value(key: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type, or a pattern that may take for ever, down to a table in it.

    Raises:
        ValueError: says which.
    """
    if value is None:
        return
    if any(word in key for word in _PATTERNS) and any(map(_is_slow, _patterns(value))):
        raise ValueError(
            f"{key} is {str(value)[:100]}, a pattern that may take for ever: give one that repeats "
            f"no group, and at most {_MOST_REPETITIONS} characters on a way through it"
        )
    if fits(value, hint):
        return
    table = next(filter(is_dataclass, typing.get_args(hint)), None)
    if table is None or not isinstance(value, dict):
        raise ValueError(f"{key} is {str(value)[:100]}")
    typed(typing.cast(type, table), value, key)
    for name, item in value.items():
        if name.endswith(_FILES) and item is not None:
            raise ValueError(f"{key}.{name} is {str(item)[:100]}, which no file may set")
        _check_value(name, item, Any)


def _patterns(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, dict | list) else [value])]


_ATOM = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|\(\?(?:P<\w+>|<?[=!:]|[aiLmsu]+\))?|.", re.DOTALL
)
"""A piece of a regular expression: an escape, a set, the beginning of a group, or a character."""


def _is_slow(pattern: str) -> bool:
    """Whether a regular expression may take for ever: a repeated group, or many repetitions.

    Of alternatives only one is on a way through it. What doubles the ways, as an optional piece and
    two alternatives do, counts as a quarter of a repetition. What this does not know is slow.
    """
    repeats = [[0.0]]  # for each group that is open: the repetitions in each of its alternatives
    last = ""
    for atom in _ATOM.findall(pattern):
        if atom.startswith("(") and not atom.endswith(")"):
            if atom == "(?":  # a comment, a condition, or flags for a part
                return True
            repeats.append([0.0])
        elif atom == ")":
            if len(repeats) == 1:
                return True
            most = _of_alternatives(repeats.pop())
            repeats[-1][-1] += most
        elif atom == "|":
            repeats[-1].append(0.0)
        elif atom in ("*", "+", "{"):
            if last == ")":
                return True
            repeats[-1][-1] += 1
        elif atom == "?" and last not in ("*", "+", "?", "}"):
            repeats[-1][-1] += 0.25
        last = atom
    return len(repeats) > 1 or _of_alternatives(repeats[0]) > _MOST_REPETITIONS


def _of_alternatives(repeats: list[float]) -> float:
    return max(repeats) + math.log2(len(repeats)) / 4


def check_readable(config: PeftConfig) -> None:
    """Refuse a method that could be trained and saved, and then not be loaded.

    Raises:
        InputError: :func:`peft_config_of` refuses what would be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT said so when the config was made
            peft_config_of(json.loads(json.dumps(peft_dict(config))))
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise InputError(
            f"The method could not be loaded again once it is saved: {sentence_end(error)}"
        ) from error


def peft_dict(config: PeftConfig) -> dict[str, Any]:
    """PEFT's config as plain JSON, without the class names that its own loader would look up."""
    record = {key: plain(value) for key, value in config.to_dict().items() if value is not None}
    for name in ("auto_mapping", "inference_mode", "runtime_config"):
        record.pop(name, None)
    return record


def plain(value: Any) -> Any:
    """Give a set as a sorted list, and a member of an enum as its value."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value


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
    """Whether both have the same names and shapes, and types; any two of floating point are."""
    pairs = (
        {name: (w.shape, w.is_floating_point() or w.dtype) for name, w in each.items()}
        for each in (one, other)
    )
    return next(pairs) == next(pairs)


def check_directory(directory: str | Path) -> None:
    """Refuse a place to save to that is a file.

    Raises:
        InputError: it is one.
    """
    if Path(directory).is_file():
        raise InputError(f"{str(directory)[:200]} is a file: give a directory to save to.")


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write an adapter in PEFT's format, and nothing of the language model."""
    check_directory(directory)
    place = Path(directory)
    with part_of(place / "adapter") as part:
        # PEFT would add a copy of the embedding to an adapter on lm_head: it is not trained.
        model.save_pretrained(str(part), save_embedding_layers=False)
        for file in sorted(part.glob("adapter_*"), reverse=True):
            file.replace(place / file.name)
