from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from qpa_exp.cli import compose_config
from qpa_exp.config import Config
from qpa_exp.lm.loading import BUNDLED

_SENTENCES = [
    "the circuit rotates every qubit and entangles it with the next",
    "a basis state is labelled by the bits that a measurement finds",
    "the mapping model turns a probability into a chunk of weights",
    "the language model is frozen and only the generator is trained",
    "an adapter is small and a model is large",
]


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three split files, small enough for an epoch in a second."""
    directory = tmp_path_factory.mktemp("text")
    for split, n in (("train", 60), ("validation", 12), ("test", 12)):
        lines = [f"{_SENTENCES[i % 5]} {i}" for i in range(n)]
        (directory / f"{split}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return directory


@pytest.fixture
def overrides(small_model_dir: Path, text_dir: Path) -> list[str]:
    """A run of a few seconds: 2 epochs of about 14 batches on a small random GPT-2."""
    return [
        "model=hf",
        f"model.name_or_path={small_model_dir}",
        "data=text",
        f"data.path={text_dir}",
        "data.max_length=16",
        "data.batch_size=4",
        "qpa.n_mlp=64",
        "optim.lr=5e-3",
        "trainer.max_epochs=2",
        "trainer.progress_bar=false",
        "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every_n_steps=4",
    ]


@pytest.fixture
def configure(overrides: list[str]) -> Callable[..., Config]:
    """The config of that run, with more overrides."""
    return lambda *more: compose_config([*overrides, *more])


@pytest.fixture(scope="session")
def small_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 64 positions with the bundled tokenizer, in the hub's own format."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=16384, bos_token_id=0, eos_token_id=0, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"]).save_pretrained(directory)
    return directory
