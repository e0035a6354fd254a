"""PEFT methods on a frozen language model, trained as they are or generated."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AdaptedModel": "adapted",
    "ClassicalModel": "adapted",
    "QPAModel": "qpa_model",
    "get_qpa_model": "qpa_model",
    "make_peft_config": "peft_config",
}
__all__ = ["AdaptedModel", "ClassicalModel", "QPAModel", "get_qpa_model", "make_peft_config"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the registry of methods needs neither torch nor PEFT."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
