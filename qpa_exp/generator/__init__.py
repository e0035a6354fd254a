"""The generator: circuit and mapping model together make the m parameters of a PEFT method."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpa_exp.generator.chunking import Chunking
    from qpa_exp.generator.whole_generator import Generator

_HOMES = {"Chunking": "chunking", "Generator": "whole_generator"}
__all__ = ["Chunking", "Generator"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a config is checked and counted without torch."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
