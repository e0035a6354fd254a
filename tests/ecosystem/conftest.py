"""A tiny language model, a chat tokenizer and texts, as users of other libraries bring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY, POSITIONS = 64, 64


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """What the other libraries remark on themselves is theirs."""
    logging.set_verbosity_error()


@pytest.fixture(scope="session")
def make_base() -> Callable[..., PreTrainedModel]:
    """``make_base(tied=False)``: a Llama of two layers, always with the same random weights."""

    def make(tied: bool = True) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shape = LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=tied,
                bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.2,
            )  # fmt: skip
            return AutoModelForCausalLM.from_config(shape).eval()

    return make


@pytest.fixture
def make_qpa(make_base: Any) -> Callable[..., Any]:
    """``make_qpa(["lm_head"])``: the model with a generated LoRA on these layers."""
    from qpa_exp import QPAConfig, get_qpa_model

    def make(targets: list[str] | None = None, tied: bool = True) -> Any:
        lora = LoraConfig(
            r=2, target_modules=targets or ["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        return get_qpa_model(make_base(tied), lora, QPAConfig(n_mlp=16, n_layers=2))

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, and a chat template that marks what the assistant says."""
    words = {"<eos>": 0, "<unk>": 1, "user": 2, "assistant": 3}
    words |= {f"w{i}": i for i in range(4, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")
    chat.chat_template = (
        "{% for message in messages %}{{ message.role + ' ' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + ' <eos> ' }}"
        "{% endgeneration %}{% else %}{{ message.content + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    return chat


@pytest.fixture(scope="session")
def examples() -> Dataset:
    """16 rows of 12 random tokens."""
    ids = torch.randint(4, VOCABULARY, (16, 12), generator=torch.Generator().manual_seed(1))
    rows = ids.tolist()
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


@pytest.fixture(scope="session")
def arguments() -> dict[str, Any]:
    """What a test sets beside a trainer's defaults: where it runs, how far, and no reports."""
    return {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
    }  # fmt: skip
