"""Small random language models of many families, and PEFT methods at their size."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import OVERRIDES, architectures
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY, WIDTH, POSITIONS = 48, 16, 32

# qpa_exp is imported inside the fixtures: the type-checking import hook comes after this file.

ARCHITECTURES = architectures(VOCABULARY, WIDTH, POSITIONS)


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    """``make_model("llama")``: a new one at each call, always with the same random weights."""

    def make(name: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval()

    return make


@pytest.fixture(scope="session")
def peft_config() -> Callable[..., Any]:
    """``peft_config("dora", "peft.r=2")``: PEFT's config, at the small models' size."""
    from qpa_exp.adapters.peft_model import make_peft_config
    from qpa_exp.cli import compose_config

    @functools.cache
    def compose(method: str, *overrides: str) -> Any:
        return compose_config([f"peft={method}", *OVERRIDES.get(method, []), *overrides])

    return lambda *asked: make_peft_config(compose(*asked).peft)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """(3, 12) random tokens."""
    return torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """PEFT's remarks on tied heads and unreachable hubs."""
    warnings.filterwarnings("ignore", module="peft")
