"""From our keys to PEFT's own config, checked against PEFT's own config class."""

from __future__ import annotations

import types
import typing
from dataclasses import fields
from typing import Any

from peft import PeftConfig

from qpa_exp.adapters.catalogue import METHODS, Method
from qpa_exp.config import PeftMethodConfig
from qpa_exp.errors import InputError, nearest, sentence_end

_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules")
"""Our typed keys; what is a method's alone is in ``peft.options``, under PEFT's own names."""

# What a run decides, or what would train the language model's own weights.
_NO_OPTIONS = {item.name for item in fields(PeftConfig)} | {
    "bias", "modules_to_save", "num_layers", "num_attention_heads", "token_dim",
    "num_transformer_submodules",
}  # fmt: skip

_ALL_LINEAR = "all-linear"
"""As the only target: every linear layer but the output head."""


def make_peft_config(config: PeftMethodConfig, task_type: str = "CAUSAL_LM") -> PeftConfig:
    """PEFT's config for the method that ours names.

    A key that is null is left to PEFT's own default. A method that targets no modules by name
    leaves the schema's default, ``[lm_head]``, unread.

    Raises:
        InputError: a key or an option that the method does not have, or a value that it refuses.
    """
    name = config.method
    method = METHODS[name]
    has = {f.name for f in fields(method.config_class())}
    values = {key: getattr(config, key) for key in _KEYS if getattr(config, key) is not None}
    if "target_modules" not in has and config.target_modules == PeftMethodConfig().target_modules:
        del values["target_modules"]
    for key, value in values.items():
        if key not in has:
            own = ", ".join([*(f"peft.{k}" for k in _KEYS if k in has), "peft.options"])
            raise InputError(f"peft.{key}={value} is no key of peft={name}: it takes {own}.")
    for option, value in config.options.items():
        _check_option(name, method, option, value)
    if values.get("target_modules") == [_ALL_LINEAR]:  # PEFT takes this word by itself
        values["target_modules"] = _ALL_LINEAR
    try:
        return method.config_class()(
            task_type=task_type, **values, **method.fixed, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"peft={name} refuses this configuration: {sentence_end(error)}"
        ) from error


def options_of(method: Method) -> dict[str, Any]:
    """What ``peft.options`` may hold, with the types that PEFT states."""
    config_class = method.config_class()
    hints = typing.get_type_hints(config_class)
    taken = {*_NO_OPTIONS, *_KEYS, *method.fixed}
    own = [item for item in fields(config_class) if item.name not in taken]
    return {f.name: hints[f.name] | None if f.default is None else hints[f.name] for f in own}


def _check_option(name: str, method: Method, option: str, value: object) -> None:
    options = options_of(method)
    if option in _KEYS:
        raise InputError(f"peft.options.{option} is a key of its own: write peft.{option}={value}.")
    if option not in options:
        close = nearest(option, options) or sorted(options)
        raise InputError(
            f"peft.options.{option} is no option of peft={name}: did you mean {' or '.join(close)}?"
        )
    if not _fits(value, options[option]):
        raise InputError(
            f"peft.options.{option}={value} has the wrong type: give {_words(options[option])}."
        )


_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    list: "a list", dict: "a table", types.NoneType: "null",
}  # fmt: skip


def _choices(hint: Any) -> list[Any]:
    """The types that a hint allows, or the values."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(hint) for choice in _choices(part)]
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    return [origin or hint]


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from a config is of a hint's type; of one of PEFT's own, PEFT decides."""
    for choice in _choices(hint):
        if not isinstance(choice, type):
            fits = value == choice
        elif choice not in _WORDS:
            fits = True
        elif isinstance(value, bool):
            fits = choice is bool
        else:
            fits = isinstance(value, int | float if choice is float else choice)
        if fits:
            return True
    return False


def _words(hint: Any) -> str:
    choices = [_WORDS.get(c, c) if isinstance(c, type) else c for c in _choices(hint)]
    return " or ".join(dict.fromkeys(map(str, choices)))
