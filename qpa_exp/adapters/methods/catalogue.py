"""The PEFT methods: one row each, from our config to PEFT's.

To add a method: a row here, its name in ``config.PeftMethod``, and ``conf/peft/<name>.yaml``.
AdaLoRA is left out: it prunes its ranks by calls that the training loop must make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from peft import (
    FourierFTConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)

from qpa_exp.adapters.methods.ffa import FFAConfig
from qpa_exp.adapters.methods.prefix import PrefixConfig
from qpa_exp.config import Config, PeftMethodConfig
from qpa_exp.errors import InputError, nearest, sentence_end

_LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules")
_KEYS = _LORA_KEYS
"""Our typed keys; what is a method's alone is in ``peft.options``, under PEFT's own names."""

# What a run decides, or what would train the language model's own weights.
_NO_OPTIONS = {item.name for item in fields(PeftConfig)} | {
    "bias", "modules_to_save", "num_layers", "num_attention_heads", "token_dim",
    "num_transformer_submodules",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A method: PEFT's config class, which of our keys it takes, and what it always sets."""

    config_class: type[PeftConfig]
    keys: tuple[str, ...] = ("target_modules",)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What ``peft.options`` may hold, with PEFT's default values."""
        taken = {*_NO_OPTIONS, *self.keys, *self.fixed}
        return {f.name: f.default for f in fields(self.config_class) if f.name not in taken}


METHODS: dict[str, Method] = {
    "lora": Method(LoraConfig, _LORA_KEYS, {"use_dora": False}),
    "dora": Method(LoraConfig, _LORA_KEYS, {"use_dora": True}),
    "prefix": Method(PrefixConfig),
    "ffa": Method(FFAConfig),
    "prefix_tuning": Method(PrefixTuningConfig, ()),
    "ia3": Method(IA3Config),
    "vera": Method(VeraConfig, ("r", "target_modules")),
    "vblora": Method(VBLoRAConfig, ("r", "target_modules")),
    "tinylora": Method(TinyLoraConfig, ("r", "target_modules")),
    "unilora": Method(UniLoraConfig, ("r", "target_modules")),
    "randlora": Method(RandLoraConfig, ("r", "target_modules")),
    "fourierft": Method(FourierFTConfig),
}

ALL_LINEAR = "all-linear"
"""As the only target: every linear layer but the output head."""


def make_peft_config(config: PeftMethodConfig) -> PeftConfig:
    """PEFT's config for the method that ours names.

    Raises:
        InputError: a key or an option that the method does not have, or a value that it refuses.
    """
    name = config.method
    method = METHODS[name]
    for key in _KEYS:
        _check_key(name, key, getattr(config, key))
    for option, value in config.options.items():
        _check_option(name, option, value)
    values = {key: getattr(config, key) for key in method.keys}
    if values.get("target_modules") == [ALL_LINEAR]:  # PEFT takes this word by itself
        values["target_modules"] = ALL_LINEAR
    try:
        return method.config_class(
            task_type="CAUSAL_LM", **values, **method.fixed, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"peft={name} refuses this configuration: {sentence_end(error)}"
        ) from error


def virtual_tokens(config: Config) -> int:
    """Positions of the language model that the method takes for itself, before each example.

    Raises:
        InputError: examples that are longer than the prefix that is added to them.
    """
    peft, length = config.peft, config.data.max_length
    if peft.method == "prefix" and peft.options.get("length", length) < length:
        raise InputError(
            f"peft.options.length={peft.options['length']} is shorter than "
            f"data.max_length={length}: give at least {length}."
        )
    return getattr(make_peft_config(peft), "num_virtual_tokens", None) or 0


def _check_key(name: str, key: str, value: object) -> None:
    takes = METHODS[name].keys
    if key in takes and value is None:
        raise InputError(f"peft.{key} has no value: give peft.{key}=<value>.")
    if key not in takes and value is not None:
        own = ", ".join([*(f"peft.{k}" for k in takes), "peft.options"])
        raise InputError(f"peft.{key}={value} is no key of peft={name}: it takes {own}.")


def _check_option(name: str, option: str, value: object) -> None:
    method = METHODS[name]
    if option in method.keys:
        raise InputError(f"peft.options.{option} is a key of its own: write peft.{option}={value}.")
    if option not in method.options:
        close = nearest(option, method.options) or sorted(method.options)
        raise InputError(
            f"peft.options.{option} is no option of peft={name}: did you mean {' or '.join(close)}?"
        )
    wanted = _wanted_type(method.options[option])
    if wanted is not None and not wanted.accepts(value):
        raise InputError(f"peft.options.{option}={value} has the wrong type: give {wanted.words}.")


@dataclass(frozen=True)
class _Wanted:
    """A type of value, and how to ask for it."""

    types: tuple[type, ...]
    words: str

    def accepts(self, value: object) -> bool:
        return isinstance(value, self.types) and (not isinstance(value, bool) or bool in self.types)


def _wanted_type(default: object) -> _Wanted | None:
    """The type of a default value; None where that does not tell."""
    if isinstance(default, bool):
        return _Wanted((bool,), "true or false")
    if isinstance(default, int):
        return _Wanted((int,), "a whole number")
    if isinstance(default, float):
        return _Wanted((int, float), "a number")
    return None
