"""Small random language models of three kinds, and every PEFT method at their size."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

VOCABULARY, WIDTH, POSITIONS = 48, 16, 32

# qpa_exp is imported inside the fixtures: the type-checking import hook comes after this file.

ARCHITECTURES = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=POSITIONS,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    ),
    "gpt2_untied": GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=POSITIONS,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2, tie_word_embeddings=False,
    ),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=POSITIONS,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
        tie_word_embeddings=True,
    ),
}  # fmt: skip

OVERRIDES = {
    "lora": [],
    "dora": [],
    "prefix": ["peft.options.length=16"],
    "ffa": [],
    "prefix_tuning": ["peft.options.num_virtual_tokens=4", "peft.options.init_weights=null"],
    "ia3": [],
    "vera": ["peft.r=8"],
    "vblora": ["peft.options.num_vectors=8", "peft.options.vector_length=8"],
    "tinylora": ["peft.options.u=8"],
    "unilora": ["peft.options.theta_d_length=64"],
    "randlora": ["peft.r=4"],
    "fourierft": ["peft.options.n_frequency=50"],
}
"""What fits each method to the small models."""


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    """``make_model("llama")``: a new one at each call, always with the same random weights."""

    def make(name: str) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval()

    return make


@pytest.fixture(scope="session")
def architectures() -> dict[str, PretrainedConfig]:
    """The small models' shapes, by name."""
    return ARCHITECTURES


@pytest.fixture(scope="session")
def small_overrides() -> dict[str, list[str]]:
    """Command-line overrides that fit each method to the small models."""
    return OVERRIDES


@pytest.fixture(scope="session")
def peft_config() -> Callable[..., object]:
    """``peft_config("dora", "peft.r=2")``: PEFT's config, at the small models' size."""
    from qpa_exp.adapters import make_peft_config
    from qpa_exp.cli import compose_config

    @functools.cache
    def compose(method: str, *overrides: str) -> Any:
        return compose_config([f"peft={method}", *OVERRIDES[method], *overrides])

    return lambda *asked: make_peft_config(compose(*asked).peft)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """(3, 12) random tokens."""
    return torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """PEFT's remarks on tied heads and unreachable hubs."""
    warnings.filterwarnings("ignore", module="peft")
