"""The feed-forward adapter: a bottleneck before a linear layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, PeftType, get_peft_model
from torch import Tensor, nn

from qpa_exp.adapters.methods._ffa_layer import FFAConfig
from qpa_exp.errors import InputError

WIDTH = 16


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, make_model: Any) -> Any:
    return make_model(request.param)


def build(base: Any, **fields: Any) -> PeftModel:
    fields = {"target_modules": ["lm_head"], "task_type": "CAUSAL_LM"} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return get_peft_model(base, FFAConfig(**fields)).eval()


def head_of(model: PeftModel) -> Any:
    return model.base_model.model.lm_head


def disturb(model: PeftModel) -> PeftModel:
    """Random weights in place of the zeros."""
    for tensor in head_of(model).qpa_ffa_up["default"].parameters():
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(2))
    return model


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def test_it_is_a_method_of_peft() -> None:
    assert PeftType("QPA_FFA") is PeftType.QPA_FFA


def test_it_starts_as_the_identity(base: Any, tokens: Tensor) -> None:
    before = logits(base, tokens)
    model = build(base)
    assert torch.equal(logits(model, tokens), before)
    down = head_of(model).qpa_ffa_down["default"]
    assert down.weight.abs().max() <= 1 / WIDTH**0.5  # nn.Linear's own start
    assert down.weight.std() > 0


def test_its_size_is_the_papers(base: Any) -> None:
    trained = [p.numel() for p in build(base).parameters() if p.requires_grad]
    assert sum(trained) == 2 * WIDTH * (WIDTH // 4) + WIDTH // 4 + WIDTH


@pytest.mark.parametrize(
    ("activation", "function"), [("gelu", F.gelu), ("relu", F.relu), ("tanh", torch.tanh)]
)
def test_it_is_a_residual_bottleneck(activation: str, function: Any, make_model: Any) -> None:
    head = head_of(disturb(build(make_model("gpt2"), activation=activation, reduction=2)))
    down, up = head.qpa_ffa_down["default"], head.qpa_ffa_up["default"]
    assert down.weight.shape == (WIDTH // 2, WIDTH)
    x = torch.randn(2, 5, WIDTH)
    inner = function(x @ down.weight.T + down.bias)
    wanted = (x + inner @ up.weight.T + up.bias) @ head.base_layer.weight.T
    torch.testing.assert_close(head(x), wanted)


def test_saved_and_loaded_by_peft(
    base: Any, make_model: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = disturb(build(base, activation="tanh"))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(make_model(base.config.model_type), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_disabled_and_unloaded_it_is_the_base_model(base: Any, tokens: Tensor) -> None:
    before = logits(base, tokens)
    model = disturb(build(base))
    assert not torch.equal(logits(model, tokens), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), before)
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(logits(model.unload(), tokens), before)


def test_two_adapters_can_be_switched(base: Any, tokens: Tensor) -> None:
    model = disturb(build(base))
    one = logits(model, tokens)
    model.add_adapter("other", FFAConfig(reduction=8, target_modules=["lm_head"]))
    assert torch.equal(logits(model, tokens), one)
    model.set_adapter("other")
    assert not torch.equal(logits(model, tokens), one)
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model, tokens), one)


def test_inner_layers_can_be_targeted(make_model: Any, tokens: Tensor) -> None:
    base = make_model("gpt2")
    before = logits(base, tokens)
    model = build(base, target_modules=["c_fc", "c_proj"])
    assert torch.equal(logits(model, tokens), before)
    block = model.base_model.model.transformer.h[0]
    assert block.mlp.c_proj.qpa_ffa_down["default"].weight.shape == (WIDTH, 4 * WIDTH)


def test_half_precision_weights(make_model: Any, tokens: Tensor) -> None:
    model = build(make_model("gpt2").to(torch.bfloat16))
    assert head_of(model).qpa_ffa_up["default"].weight.dtype == torch.float32
    assert logits(model, tokens).dtype == torch.bfloat16
