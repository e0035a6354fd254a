"""The short way to the loss of an adapted head, against PEFT's own forward pass and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.adapters.peft_model import build_peft_model
from qpa_exp.adapters.qpa_model import ClassicalModel, get_qpa_model
from qpa_exp.fast_head import accelerator as module
from qpa_exp.fast_head.accelerator import AdaptedHead, adapts_head_alone
from qpa_exp.fast_head.hidden_tables import Backbone
from qpa_exp.fast_head.low_rank_loss import FinalLogits

NOT_AT_THE_HEAD = {
    "adaption_prompt", "cartridge", "ln_tuning", "p_tuning", "prefix_tuning", "prompt_tuning",
    "trainable_tokens",
}  # fmt: skip
BY_PEFT = {"c3a", "deft", "frod", "gralora", "road"}
"""Those that do with the logits what is no sum of products."""


@pytest.fixture
def adapted(make_model, peft_config, qpa_config):
    """``adapted("llama", "dora", "off")``: a model away from its start, in training mode."""

    def make(family: str, config, variant: str):
        config = peft_config(config) if isinstance(config, str) else config
        if variant == "off":
            model = ClassicalModel(build_peft_model(make_model(family), config, seed=0)).train()
        else:
            model = get_qpa_model(make_model(family), config, qpa_config(variant, n_mlp=16)).train()
        stream = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape, generator=stream))
        return model

    return make


def hidden_states(model, tokens):
    """What enters the head, and the logits that leave the model."""
    head = model.language_model().get_output_embeddings()
    seen = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    logits = model(input_ids=tokens).logits
    handle.remove()
    return seen[0], logits


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def targets_and_weights(tokens):
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    targets[1, 5:] = -100
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2))
    return targets, weights


def the_long_way(model, tokens):
    """PEFT's own layers, all logits at once, torch's cross entropy and autograd."""
    targets, weights = targets_and_weights(tokens)
    hidden, logits = hidden_states(model, tokens)
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    loss = (nats * weights).sum()
    loss.backward()
    return hidden, loss.detach(), nats.detach(), gradients(model)


def the_short_way(model, tokens, hidden):
    model.begin_step()
    loss, nats = AdaptedHead(model, FinalLogits()).loss(hidden, *targets_and_weights(tokens))
    loss.backward()
    model.end_step()
    return loss.detach(), nats, gradients(model)


@pytest.mark.parametrize("chunks", ["one", "many"])
@pytest.mark.parametrize("variant", ["off", "tuned"])
@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "lora"),
        ("llama", "prefix"),
        *(("gpt2", m) for m in METHODS if m not in NOT_AT_THE_HEAD),
    ],
)
def test_every_method_has_its_own_loss_and_gradients(
    adapted, tokens, monkeypatch, method, family, variant, chunks
):
    taken = []
    for name, size in (("low_rank_loss", "buffer_bytes"), ("any_head_loss", "chunk_bytes")):
        proper = getattr(module, name)
        proper = _in_chunks(proper, size) if chunks == "many" else proper
        monkeypatch.setattr(
            module, name, lambda *a, name=name, proper=proper: taken.append(name) or proper(*a)
        )
    model = adapted(family, method, variant)
    assert adapts_head_alone(model)
    torch.manual_seed(3)
    hidden, loss, nats, expected = the_long_way(model, tokens)
    torch.manual_seed(3)
    ours, our_nats, found = the_short_way(model, tokens, hidden)
    assert taken == ["any_head_loss" if method in BY_PEFT else "low_rank_loss"]
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_nats, nats, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=tolerance)


def _in_chunks(function, name):
    """With room for the logits of 7 tokens of 48."""
    return lambda *args: function(*args, **{name: 7 * 48 * 4})


@pytest.mark.parametrize("method", ["lora", "vera", "ia3", "fourierft", "oft", "hra", "glora"])
def test_products_in_16_bits_are_near(adapted, tokens, method):
    model = adapted("gpt2", method, "off")
    hidden, loss, _, expected = the_long_way(model, tokens)
    head = AdaptedHead(model, FinalLogits(), torch.bfloat16)
    ours, _ = head.loss(hidden, *targets_and_weights(tokens))
    ours.backward()
    torch.testing.assert_close(ours.detach(), loss, rtol=0.01, atol=0.01)
    for name, gradient in gradients(model).items():
        off = (gradient - expected[name]).abs().max()
        assert off <= 0.05 * expected[name].abs().max(), name


@pytest.mark.parametrize("method", ["lora", "vera"])
def test_without_the_adapter_it_is_the_base_models(adapted, make_model, tokens, method):
    model = adapted("gpt2", method, "tuned").eval()
    hidden, logits = hidden_states(make_plain(make_model), tokens)
    targets, weights = targets_and_weights(tokens)
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    with torch.no_grad(), model.disable_adapter():
        _, ours = AdaptedHead(model, FinalLogits()).loss(hidden, targets, weights)
    torch.testing.assert_close(ours, nats.detach(), rtol=1e-5, atol=1e-5)


def make_plain(make_model):
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model("gpt2")

        def language_model(self):
            return self.model

        def forward(self, **kwargs):
            return self.model(**kwargs)

    return Plain()


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_drops_as_peft_does(adapted, tokens, use_dora):
    """PEFT draws for (rows, tokens, k) at once; so the same numbers give the same loss."""
    config = LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.5, target_modules=["lm_head"], use_dora=use_dora
    )
    model = adapted("gpt2", config, "off")
    torch.manual_seed(3)
    hidden, loss, _, expected = the_long_way(model, tokens)
    torch.manual_seed(3)
    ours, _, found = the_short_way(model, tokens, hidden)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"lora_bias": True}])
def test_options_of_pefts_lora_are_kept_to(adapted, tokens, options):
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"], **options)
    try:
        model = adapted("gpt2", config, "off")
    except ValueError:
        pytest.skip("PEFT refuses this for a head without a bias")
    hidden, loss, _, expected = the_long_way(model, tokens)
    ours, _, found = the_short_way(model, tokens, hidden)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "targets", "alone"),
    [
        ("lora", ["lm_head"], True),
        ("lora", ["lm_head", "c_attn"], False),
        ("lora", ["c_attn"], False),
        ("ia3", ["lm_head"], True),
        ("prefix_tuning", None, False),
    ],
)
def test_which_set_ups_leave_the_backbone_alone(adapted, peft_config, method, targets, alone):
    extra = [] if targets is None else [f"peft.target_modules=[{','.join(targets)}]"]
    model = adapted("gpt2", peft_config(method, *extra), "off")
    assert adapts_head_alone(model) is alone


@pytest.mark.parametrize("variant", ["off", "tuned"])
@pytest.mark.parametrize("more", [{"bias": "all"}, {"modules_to_save": ["ln_f"]}], ids=str)
def test_what_is_trained_beside_the_head_is_seen(adapted, variant, more):
    model = adapted("gpt2", LoraConfig(r=2, target_modules=["lm_head"], **more), variant)
    assert not adapts_head_alone(model)


@pytest.mark.parametrize("family", ["gpt2", "gpt2_untied", "llama"])
@pytest.mark.parametrize("method", ["lora", "dora", "vblora", "prefix"])
def test_all_methods_share_what_the_backbone_is_known_by(adapted, make_model, method, family):
    expected = Backbone(make_model(family)).identity
    for variant in ("off", "tuned"):
        assert Backbone(adapted(family, method, variant).language_model()).identity == expected


# --- one generated vector for each step ---------------------------------------------------------


def test_batches_of_a_step_add_up_to_the_gradients_of_separate_passes(adapted, tokens):
    model = adapted("gpt2", "lora", "tuned")
    for row in tokens:
        model(input_ids=row[None], labels=row[None]).loss.backward()
    expected = gradients(model)
    calls = []
    handle = model.generator.register_forward_hook(lambda *_: calls.append(1))
    for row in tokens:
        model.begin_step()
        model(input_ids=row[None], labels=row[None]).loss.backward()
    assert not gradients(model)
    model.end_step()
    handle.remove()
    assert len(calls) == 1
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_evaluation_within_a_step_disturbs_nothing(adapted, tokens):
    model = adapted("gpt2", "lora", "tuned")

    def step(between):
        for row in tokens:
            model.train().begin_step()
            model(input_ids=row[None], labels=row[None]).loss.backward()
            if between:
                with torch.no_grad():
                    model.eval()(input_ids=row[None])
                model.generated_tensors()
        model.end_step()
        return gradients(model)

    plain, disturbed = step(False), step(True)
    assert all(torch.equal(plain[name], disturbed[name]) for name in plain)


def test_after_a_step_every_forward_pass_makes_its_own_vector_again(adapted, tokens):
    model = adapted("gpt2", "lora", "tuned")
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = gradients(model)
    model.begin_step()
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.end_step()
    gradients(model)
    model(input_ids=tokens, labels=tokens).loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name])
