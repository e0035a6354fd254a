"""Hidden states and final logits of small random models of many families."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpa_exp.fast_head.hidden_tables import Backbone, find_final_logits
from qpa_exp.fast_head.low_rank_loss import FinalLogits

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
    "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip

FAMILIES = {
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32}, None),
    "llama": ({}, None),
    "gemma": ({}, None),
    "gemma2": ({"final_logit_softcapping": 2.0}, FinalLogits(1.0, 2.0)),
    "cohere": ({"logit_scale": 0.125}, FinalLogits(0.125)),
    "granite": ({"logits_scaling": 4.0}, FinalLogits(0.25)),
    "opt": ({"word_embed_proj_dim": 8, "ffn_dim": 32, "do_layer_norm_before": False}, None),
    "gpt_neox": ({}, None),
    "qwen2": ({}, None),
    "mistral": ({}, None),
    "phi": ({"num_key_value_heads": 2}, None),  # its head has a bias
    "bloom": ({"n_head": 2, "n_layer": 2}, None),
}


def make(family):
    shape, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **(shape if family == "gpt2" else SMALL | shape))
        model = AutoModelForCausalLM.from_config(config)
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_and_what_follows_it_give_the_models_own_logits(family, tokens):
    model = make(family)
    expected = FAMILIES[family][1] or FinalLogits()
    final = find_final_logits(model, tokens)
    assert final is not None
    assert final.scale == pytest.approx(expected.scale, rel=1e-5)
    assert final.soft_cap == expected.soft_cap
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    hidden = Backbone(model).hidden(tokens, mask)
    logits = final(model.get_output_embeddings()(hidden))
    expected_logits = model(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)


def test_a_model_that_does_something_else_is_told(tokens):
    model = make("llama")
    proper = model.forward

    def forward(*args, **kwargs):
        out = proper(*args, **kwargs)
        out.logits = out.logits + 0.01 * out.logits.square()
        return out

    model.forward = forward
    assert find_final_logits(model, tokens) is None


def test_a_head_called_twice_is_told(tokens):
    model = make("llama")
    proper = model.forward

    def forward(*args, **kwargs):
        proper(*args, **kwargs)
        return proper(*args, **kwargs)

    model.forward = forward
    assert find_final_logits(model, tokens) is None


def test_half_precision_is_seen_through(tokens):
    assert find_final_logits(make("gemma2").bfloat16(), tokens) == FinalLogits(1.0, 2.0)
    assert find_final_logits(make("gpt2").bfloat16(), tokens) == FinalLogits()


def test_the_model_is_left_as_it_was(tokens):
    model = make("gpt2")
    before = model(input_ids=tokens).logits
    Backbone(model).hidden(tokens, torch.ones_like(tokens))
    find_final_logits(model, tokens)
    assert torch.equal(model(input_ids=tokens).logits, before)
