"""One learned vector for each position: where it lands, and where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from torch import Tensor, nn

from qpa_exp.adapters.methods._prefix_layer import Positions, PrefixConfig, PrefixLayer
from qpa_exp.errors import InputError

LENGTH, WIDTH = 16, 16


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, make_model: Any) -> Any:
    return make_model(request.param)


@pytest.fixture
def adapted(base: Any) -> PeftModel:
    """With random vectors in place of the zeros."""
    config = PrefixConfig(length=LENGTH, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    nn.init.normal_(vectors_of(model), generator=torch.Generator().manual_seed(2))
    return model


def vectors_of(model: Any) -> Tensor:
    return model.base_model.model.lm_head.qpa_prefix_vectors["default"]


@torch.no_grad()
def expected(model: PeftModel, tokens: Tensor) -> Tensor:
    """The head on hidden states with each position's vector added, by hand."""
    with model.disable_adapter():
        output = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        return model.base_model.model.lm_head(
            output.hidden_states[-1] + vectors_of(model)[: tokens.shape[1]]
        )


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> Tensor:
    return model(**{"use_cache": False} | inputs).logits


def test_it_is_a_method_of_peft() -> None:
    assert PeftType("QPA_PREFIX") is PeftType.QPA_PREFIX
    assert isinstance(PrefixConfig().peft_type, PeftType)


def test_it_starts_at_zero(base: Any, tokens: Tensor) -> None:
    before = logits(base, input_ids=tokens)
    model = get_peft_model(base, PrefixConfig(length=LENGTH, target_modules=["lm_head"]))
    assert not vectors_of(model).any()
    assert vectors_of(model).shape == (LENGTH, WIDTH)
    assert torch.equal(logits(model.eval(), input_ids=tokens), before)


def test_each_position_has_its_own_vector(adapted: PeftModel, tokens: Tensor) -> None:
    torch.testing.assert_close(logits(adapted, input_ids=tokens), expected(adapted, tokens))


def test_a_padded_row_counts_from_its_first_token(adapted: PeftModel, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    torch.testing.assert_close(
        logits(adapted, input_ids=tokens, attention_mask=mask)[1, :5],
        expected(adapted, tokens)[1, :5],
    )


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 11])])
def test_kept_logits_keep_their_positions(
    keep: int | Tensor, adapted: PeftModel, tokens: Tensor
) -> None:
    wanted = expected(adapted, tokens)
    wanted = wanted[:, -keep:] if isinstance(keep, int) else wanted[:, keep]
    kept = logits(adapted, input_ids=tokens, logits_to_keep=keep)
    torch.testing.assert_close(kept, wanted)


def test_a_cache_moves_the_positions_on(adapted: PeftModel, tokens: Tensor) -> None:
    with torch.no_grad():
        first = adapted(input_ids=tokens[:, :7], use_cache=True)
        rest = adapted(
            input_ids=tokens[:, 7:], use_cache=True, past_key_values=first.past_key_values
        )
    both = torch.cat([first.logits, rest.logits], dim=1)
    torch.testing.assert_close(both, expected(adapted, tokens), rtol=1e-4, atol=1e-5)


def test_given_positions_are_used(adapted: PeftModel, tokens: Tensor) -> None:
    model = adapted.base_model.model
    positions = torch.arange(12).flip(0)[None].expand(3, -1)
    given = logits(model, input_ids=tokens, position_ids=positions)
    with adapted.disable_adapter(), torch.no_grad():
        output = model(
            input_ids=tokens, position_ids=positions, output_hidden_states=True, use_cache=False
        )
        wanted = model.lm_head(output.hidden_states[-1] + vectors_of(adapted)[positions])
    torch.testing.assert_close(given, wanted)


def test_generation_from_left_padded_rows(adapted: PeftModel, tokens: Tensor) -> None:
    asked = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    alone = adapted.generate(
        input_ids=tokens[:1, :5], attention_mask=torch.ones(1, 5, dtype=torch.long), **asked
    )
    padded = torch.zeros(2, 8, dtype=torch.long)
    mask = torch.zeros_like(padded)
    padded[0, 3:], mask[0, 3:] = tokens[0, :5], 1
    padded[1], mask[1] = tokens[1, :8], 1
    together = adapted.generate(input_ids=padded, attention_mask=mask, **asked)
    new = alone[0, 5:]
    assert torch.equal(together[0, 8 : 8 + len(new)], new)


def test_positions_are_forgotten_after_the_forward_pass(adapted: PeftModel, tokens: Tensor) -> None:
    logits(adapted, input_ids=tokens, logits_to_keep=1)
    head = adapted.base_model.model.lm_head
    x = torch.randn(2, 5, WIDTH)
    added = x + vectors_of(adapted)[:5]
    assert torch.equal(head(x), head.base_layer(added))
    assert torch.equal(head(x[0]), head.base_layer(added[0]))
    assert head.positions.given is None


def test_positions_are_forgotten_after_a_failure(adapted: PeftModel) -> None:
    with pytest.raises(InputError):
        adapted(input_ids=torch.ones(1, LENGTH + 1, dtype=torch.long), use_cache=False)
    assert adapted.base_model.model.lm_head.positions.given is None


def test_a_longer_sequence_is_refused(adapted: PeftModel, tokens: Tensor) -> None:
    long = tokens[:1].repeat(1, 2)
    sentence = "24 tokens is longer than the prefix of 16: give peft.options.length=24"
    with pytest.raises(InputError, match=sentence):
        adapted(input_ids=long, use_cache=False)
    with pytest.raises(InputError, match="longer than the prefix"):
        adapted(input_ids=long, use_cache=False, logits_to_keep=1)
    with pytest.raises(InputError, match="longer than the prefix"):
        adapted.generate(
            input_ids=tokens[:1], attention_mask=torch.ones(1, 12), max_new_tokens=6,
            min_new_tokens=6, do_sample=False, pad_token_id=0,
        )  # fmt: skip


def test_an_input_of_another_length_is_refused() -> None:
    positions = Positions()
    positions.read(nn.Identity(), (torch.ones(2, 6),), {})
    layer = PrefixLayer(nn.Linear(4, 3), positions)
    layer.add_adapter("default", PrefixConfig(length=8))
    with pytest.raises(InputError, match="cannot tell the positions"):
        layer(torch.ones(12, 4))


def test_inner_layers_can_be_targeted(make_model: Any, tokens: Tensor) -> None:
    base = make_model("gpt2")
    before = logits(base, input_ids=tokens)
    config = PrefixConfig(length=LENGTH, target_modules=["c_attn", "c_fc"])
    model = get_peft_model(base, config).eval()
    assert torch.equal(logits(model, input_ids=tokens), before)
    attention = model.base_model.model.transformer.h[0].attn.c_attn
    nn.init.normal_(attention.qpa_prefix_vectors["default"])
    assert not torch.equal(logits(model, input_ids=tokens), before)


def test_saved_and_loaded_by_peft(
    adapted: PeftModel, make_model: Any, tokens: Tensor, tmp_path: Path
) -> None:
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=False)
    kind = adapted.config.model_type
    loaded = PeftModel.from_pretrained(make_model(kind), str(tmp_path)).eval()
    assert loaded.peft_config["default"].length == LENGTH
    assert torch.equal(logits(loaded, input_ids=tokens), logits(adapted, input_ids=tokens))


def test_two_adapters_can_be_switched(adapted: PeftModel, tokens: Tensor) -> None:
    one = logits(adapted, input_ids=tokens)
    adapted.add_adapter("other", PrefixConfig(length=12, target_modules=["lm_head"]))
    assert torch.equal(logits(adapted, input_ids=tokens), one)
    adapted.set_adapter("other")
    with adapted.disable_adapter():
        base = logits(adapted, input_ids=tokens)
    assert torch.equal(logits(adapted, input_ids=tokens), base)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted, input_ids=tokens), one)


def test_it_cannot_be_merged_but_unloaded(adapted: PeftModel, tokens: Tensor) -> None:
    with pytest.raises(InputError, match="cannot be merged"):
        adapted.merge_adapter()
    with adapted.disable_adapter():
        base = logits(adapted, input_ids=tokens)
    assert torch.equal(logits(adapted.unload(), input_ids=tokens), base)


def test_half_precision_weights(make_model: Any, tokens: Tensor) -> None:
    base = make_model("gpt2").to(torch.bfloat16)
    model = get_peft_model(base, PrefixConfig(length=LENGTH, target_modules=["lm_head"])).eval()
    assert vectors_of(model).dtype == torch.float32
    assert logits(model, input_ids=tokens).dtype == torch.bfloat16
