"""Language models of many families, a few thousand weights each, and what fits them."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

ADAPTABLE = {
    "gpt2": ["c_attn", "c_fc"],
    "gpt2_untied": ["c_attn", "c_fc"],
    "gptj": ["q_proj", "fc_in"],
    "opt": ["q_proj", "fc1"],
    "llama": ["q_proj", "down_proj"],
    "qwen3": ["q_proj", "down_proj"],
    "gemma": ["q_proj", "down_proj"],
    "gemma2": ["q_proj", "down_proj"],
    "mamba": ["in_proj", "x_proj"],
}
"""For each family a layer of the attention, or what stands for it, and one of the MLP."""


OVERRIDES = {
    "prefix": ["peft.options.length=16"],
    "prefix_tuning": ["peft.options.num_virtual_tokens=4", "peft.options.init_weights=null"],
    "prompt_tuning": ["peft.options.num_virtual_tokens=4"],
    "p_tuning": ["peft.options.num_virtual_tokens=4", "peft.options.encoder_hidden_size=16"],
    "cartridge": ["peft.options.num_virtual_tokens=4"],
    "adaption_prompt": ["peft.options.adapter_len=4"],
    "trainable_tokens": ["peft.options.token_indices=[1,2,3,4,5,6,7,8]"],
    "supertuning": ["peft.options.sparsity=0.9"],
    "vblora": ["peft.options.num_vectors=8", "peft.options.vector_length=8"],
    "tinylora": ["peft.options.u=8"],
    "unilora": ["peft.options.theta_d_length=64"],
    "fourierft": ["peft.options.n_frequency=50"],
    "waveft": ["peft.options.n_frequency=50"],
    "c3a": ["peft.options.block_size=8"],
    "oft": ["peft.options.oft_block_size=4"],
    "road": ["peft.options.group_size=8"],
    "qpeft": ["peft.options.scale=1.0"],
    "vera": ["peft.r=8"],
    "pvera": ["peft.r=8"],
} | {
    method: ["peft.r=4"]
    for method in (
        "deft", "glora", "gralora", "hira", "lily", "miss", "peanut", "psoft", "randlora", "shira",
    )
}  # fmt: skip
"""What fits each method to the small models; nothing for those that are not named."""


def architectures(vocabulary: int, width: int, positions: int) -> dict[str, PretrainedConfig]:
    """A config of each family: two layers, ``width`` wide, weights large enough to matter.

    Tied heads and untied ones, with a bias (GPT-J) and without, capped logits (Gemma-2), a head
    narrower than the backbone (OPT), and a model that has no attention (Mamba).
    """
    ends: dict[str, Any] = {
        "vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    gpt = {**ends, "n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": positions}
    gated = {
        **ends, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions,
        "initializer_range": 0.2,
    }  # fmt: skip
    return {
        "gpt2": GPT2Config(**gpt, initializer_range=0.2),
        "gpt2_untied": GPT2Config(**gpt, initializer_range=0.2, tie_word_embeddings=False),
        "gptj": GPTJConfig(**gpt, rotary_dim=4, initializer_range=0.2),
        "opt": OPTConfig(
            **ends, hidden_size=width, ffn_dim=2 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=positions,
            word_embed_proj_dim=width // 2, init_std=0.2,
        ),
        "llama": LlamaConfig(**gated, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**gated, head_dim=8, tie_word_embeddings=False),
        "gemma": GemmaConfig(**gated, head_dim=8),
        "gemma2": Gemma2Config(
            **gated, head_dim=8, sliding_window=8, final_logit_softcapping=5.0
        ),
        "mamba": MambaConfig(
            **ends, hidden_size=width, state_size=4, num_hidden_layers=2, initializer_range=0.2
        ),
    }  # fmt: skip
