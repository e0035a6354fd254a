"""A frozen backbone with packed weights against the same one as transformers computes it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpa_exp.fast_head import hidden_tables as module
from qpa_exp.fast_head.hidden_tables import Backbone, Packing

LLAMA = {
    "hidden_size": 512, "intermediate_size": 520, "num_hidden_layers": 2,
    "num_attention_heads": 4, "attention_bias": True,
}  # fmt: skip
SHAPES = {"gpt2": {"n_embd": 512, "n_layer": 2, "n_head": 4}, "llama": LLAMA}


def make(family, **changed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"vocab_size": 40, "initializer_range": 0.1, **SHAPES[family], **changed}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    return model.requires_grad_(False).eval()


@pytest.fixture
def tokens():
    return torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask(tokens):
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    return mask


def plain_states(model, tokens, mask):
    """What enters the head of the model as it is."""
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    model(input_ids=tokens, attention_mask=mask)
    handle.remove()
    return seen[0]


def packed_layers(model, own):
    with own.used_by(model):
        return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", SHAPES)
def test_the_hidden_states_are_those_of_the_plain_model(family, tokens, mask):
    model = make(family)
    backbone, plain = Backbone(model), plain_states(model, tokens, mask)
    for _ in range(2):  # packing, and packed before
        torch.testing.assert_close(backbone.hidden(tokens, mask), plain, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_are_packed_once(tokens, mask, monkeypatch):
    backbone, made = Backbone(make("gpt2")), []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(module, "_pack", lambda rows: made.append(len(rows)) or pack(rows, 512))
    backbone.hidden(tokens, mask)
    assert sorted(made) == sorted(2 * [1536, 512, 2048, 512])  # all but the head
    backbone.hidden(tokens, mask)
    assert len(made) == 8


def test_a_weight_that_changed_is_packed_anew(tokens, mask):
    model = make("gpt2")
    backbone = Backbone(model)
    before = backbone.hidden(tokens, mask)
    model.transformer.h[0].mlp.c_fc.weight.mul_(2)
    after = backbone.hidden(tokens, mask)
    assert (after - before).abs().max() > 0.1
    plain = plain_states(model, tokens, mask)
    torch.testing.assert_close(after, plain, rtol=1e-4, atol=1e-5)


def test_it_is_undone_after_an_error():
    model = make("gpt2")
    with pytest.raises(KeyError), Packing().used_by(model):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_pass_that_is_somebody_elses_is_left_alone(tokens, mask):
    model = make("gpt2")
    theirs = model.transformer.h[0].mlp.c_fc
    forward = theirs.forward
    theirs.forward = lambda x: 2 * forward(x)
    plain = plain_states(model, tokens, mask)
    ours = Backbone(model).hidden(tokens, mask)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert vars(theirs)["forward"](torch.ones(1, 512)).shape == (1, 2048)


@pytest.mark.parametrize("why", ["trained", "bfloat16", "narrow", "no memory"])
def test_what_would_not_gain_is_left_as_it_is(why, monkeypatch):
    narrow = {"hidden_size": 256, "intermediate_size": 300}
    model = make("llama", **(narrow if why == "narrow" else {}))
    if why == "trained":
        model.requires_grad_(True)
    if why == "bfloat16":
        model.bfloat16()
    if why == "no memory":
        monkeypatch.setattr(module, "free_memory", lambda: 2**10)
    assert packed_layers(model, Packing()) == 0
    assert packed_layers(make("llama"), Packing()) == (0 if why == "no memory" else 15)


def test_under_autocast_products_are_autocasts(tokens, mask):
    model = make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = plain_states(model, tokens, mask), Backbone(model).hidden(tokens, mask)
    assert torch.equal(plain, ours)
