"""A language model whose LoRA is generated, against PEFT's own LoRA with the same tensors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.func import functional_call

from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator

# What PEFT and transformers remark on a plain LoRA, which is built here to compare with.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]

VARIANTS = ["paper", "released", "tuned"]
R, WIDTH, VOCABULARY = 2, 16, 61
HEAD = "base_model.model.lm_head.lora_{}.default.weight"


def lora(*targets: str, dropout: float = 0.0) -> LoraConfig:
    return LoraConfig(
        r=R, lora_alpha=2 * R, lora_dropout=dropout, target_modules=list(targets or ("lm_head",))
    )


def disturb(model: QPAModel) -> QPAModel:
    """A step away from the start, always the same one."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def train_a_little(model: nn.Module, batch: dict[str, torch.Tensor], steps: int = 8) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def make_qpa(make_gpt2, qpa_config):
    """``make_qpa("tuned", "lm_head")``: a generated LoRA on the small model, in evaluation mode."""

    def make(variant: str, *targets: str, dropout: float = 0.0, **fields) -> QPAModel:
        config = qpa_config(variant, **({"n_mlp": 16} | fields))
        if "basis_order" in fields:  # a published variant with another order is ours
            config = dataclasses.replace(config, variant="tuned")
        return get_qpa_model(make_gpt2(), lora(*targets, dropout=dropout), config).eval()

    return make


@pytest.fixture
def base_logits(make_gpt2, batch):
    return logits_of(make_gpt2(), batch)


# --- where training starts --------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "c_attn")])
def test_tuned_starts_at_exactly_the_base_model(
    make_qpa, make_gpt2, base_logits, batch, targets, training
):
    model = make_qpa("tuned", *targets, dropout=0.5).train(training)
    assert torch.equal(logits_of(model, batch), base_logits)
    assert torch.equal(model(**batch).loss, make_gpt2()(**batch).loss)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_published_variants_start_away_from_the_base_model(
    make_qpa, base_logits, batch, variant
):
    assert (logits_of(make_qpa(variant), batch) - base_logits).abs().max() > 1e-3


def test_tuned_starts_at_pefts_own_initial_tensors(make_qpa):
    tensors = make_qpa("tuned").generated_tensors()
    assert tensors[HEAD.format("B")].count_nonzero() == 0
    assert tensors[HEAD.format("A")].count_nonzero() == R * WIDTH


@pytest.mark.parametrize("variant", VARIANTS)
def test_building_one_leaves_the_global_random_stream_alone(make_gpt2, qpa_config, variant):
    base, config = make_gpt2(), qpa_config(variant, n_mlp=16)
    stream = torch.get_rng_state()
    get_qpa_model(base, lora(), config)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_gives_the_same_model(make_qpa, batch, variant):
    first, second, other = (disturb(make_qpa(variant, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(logits_of(first, batch), logits_of(second, batch))
    assert not torch.equal(logits_of(first, batch), logits_of(other, batch))


# --- what is generated ------------------------------------------------------------------------


def test_the_vector_holds_the_heads_b_and_then_its_a(make_qpa):
    model = make_qpa("paper")
    vector = model.generator().detach()
    assert vector.shape == (R * (VOCABULARY + WIDTH),)
    tensors = model.generated_tensors()
    assert list(tensors) == [HEAD.format("B"), HEAD.format("A")]
    b, a = vector[: VOCABULARY * R], vector[VOCABULARY * R :]
    assert torch.equal(tensors[HEAD.format("B")], b.view(VOCABULARY, R))
    assert torch.equal(tensors[HEAD.format("A")], a.view(R, WIDTH))


def test_several_targets_take_the_vector_in_the_models_order_each_b_first(make_qpa):
    model = make_qpa("paper", "lm_head", "c_attn")
    tensors = model.generated_tensors()
    attention = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.default.weight"
    expected = {
        attention.format(0, "B"): (3 * WIDTH, R),
        attention.format(0, "A"): (R, WIDTH),
        attention.format(1, "B"): (3 * WIDTH, R),
        attention.format(1, "A"): (R, WIDTH),
        HEAD.format("B"): (VOCABULARY, R),
        HEAD.format("A"): (R, WIDTH),
    }
    assert [(name, tuple(t.shape)) for name, t in tensors.items()] == list(expected.items())
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    assert torch.equal(flat, model.generator().detach())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "c_attn")])
def test_it_computes_what_a_plain_lora_with_the_same_tensors_does(
    make_qpa, make_gpt2, batch, variant, targets
):
    model = disturb(make_qpa(variant, *targets))
    plain = get_peft_model(make_gpt2(), lora(*targets)).eval()
    loaded = plain.load_state_dict(model.generated_tensors(), strict=False)
    assert not loaded.unexpected_keys
    torch.testing.assert_close(logits_of(model, batch), logits_of(plain, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_a_second_computation(
    make_qpa, make_gpt2, qpa_config, batch, variant, training
):
    model = make_qpa(variant)
    start = model.generated_tensors()
    disturb(model).train(training)
    torch.manual_seed(3)
    loss = model(**batch).loss
    loss.backward()

    generator = Generator(R * (VOCABULARY + WIDTH), qpa_config(variant, n_mlp=16)).train(training)
    generator.load_state_dict(model.generator.state_dict())
    torch.manual_seed(3)
    vector = generator()
    b, a = vector[: VOCABULARY * R].view(-1, R), vector[VOCABULARY * R :].view(R, -1)
    if variant == "tuned":
        b, a = start[HEAD.format("B")] + b, start[HEAD.format("A")] + a
    plain = get_peft_model(make_gpt2(), lora()).eval()
    tensors = {HEAD.format("B"): b, HEAD.format("A"): a}
    expected = functional_call(plain, tensors, kwargs=batch).loss
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    for name, parameter in model.generator.named_parameters():
        theirs = generator.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-4, atol=1e-6)
        assert theirs.count_nonzero() > 0, name


def test_the_circuits_angles_have_the_losses_slope(make_qpa, batch):
    model = disturb(make_qpa("paper"))
    model(**batch).loss.backward()
    theta = model.generator.circuit.theta
    gradient = theta.grad.clone()
    direction = gradient / gradient.norm()
    step, losses = 1e-2, []
    for sign in (1, -1):
        with torch.no_grad():
            theta.add_(sign * step * direction)
            losses.append(model(**batch).loss.item())
            theta.sub_(sign * step * direction)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert slope == pytest.approx(gradient.norm().item(), rel=0.05)


# --- what is trained --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_generator_is_trained(make_qpa, batch, variant):
    model = make_qpa(variant).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    place = "base_model.generators.default."
    assert trained == {f"{place}{name}" for name, _ in model.generator.named_parameters()}
    model(**batch).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert all(p.grad.isfinite().all() for p in model.generator.parameters())
    assert model.generator.circuit.theta.grad.count_nonzero() > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "c_attn")])
def test_a_few_steps_lower_the_loss_and_leave_the_base_model_alone(
    make_qpa, base_logits, batch, variant, targets
):
    torch.manual_seed(0)
    model = make_qpa(variant, *targets, basis_order="fixed").train()
    losses = train_a_little(model, batch)
    assert losses[-1] < losses[0] - 0.01
    with model.disable_adapter():
        assert torch.equal(logits_of(model.eval(), batch), base_logits)


def test_steps_with_a_random_basis_order_lower_the_loss(make_qpa, batch):
    torch.manual_seed(0)
    losses = train_a_little(make_qpa("released").train(), batch, steps=60)
    assert sum(losses[-10:]) < sum(losses[:10])


def test_training_mode_reaches_the_methods_dropout_and_not_the_backbones(make_qpa, batch):
    model = make_qpa("paper", dropout=0.5)
    assert not any(module.training for module in model.peft_model.modules())
    model.train()
    on = {
        name
        for name, m in model.peft_model.named_modules()
        if isinstance(m, nn.Dropout) and m.training
    }
    assert on == {"base_model.model.lm_head.lora_dropout.default"}
    assert not torch.equal(logits_of(model, batch), logits_of(model, batch))
    model.eval()
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))


def test_the_backbones_own_dropout_never_acts(make_qpa, base_logits, batch):
    model = make_qpa("paper", dropout=0.5).train()
    with model.disable_adapter():
        assert torch.equal(logits_of(model, batch), base_logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_disabling_the_adapter_gives_the_base_model_and_is_undone_after(
    make_qpa, base_logits, batch, variant
):
    model = disturb(make_qpa(variant))
    before = logits_of(model, batch)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, batch), base_logits)
    assert torch.equal(logits_of(model, batch), before)


def test_evaluation_follows_every_change_of_the_parameters(make_qpa, batch):
    model = make_qpa("paper")
    before = logits_of(model, batch)
    assert torch.equal(logits_of(model, batch), before)
    disturb(model)
    changed = logits_of(model, batch)
    assert not torch.equal(changed, before)
    model.generator.load_state_dict(make_qpa("paper").generator.state_dict())
    assert torch.equal(logits_of(model, batch), before)


def test_generated_text_follows_the_adapter(make_qpa, batch):
    model = disturb(make_qpa("paper"))
    prompt = batch["input_ids"][:1, :4]
    written = model.generate(input_ids=prompt, max_new_tokens=1, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        best = model(input_ids=prompt).logits[0, -1].argmax()
    assert written[0, -1] == best


# --- a plain PEFT model -----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [("lm_head",), ("lm_head", "c_attn")])
def test_to_peft_computes_the_same_with_no_circuit_in_it(make_qpa, batch, variant, targets):
    model = disturb(make_qpa(variant, *targets))
    plain = model.to_peft()
    assert isinstance(plain, PeftModel)
    torch.testing.assert_close(logits_of(plain, batch), logits_of(model, batch), rtol=0, atol=1e-6)
    assert not any("parametrizations" in name for name, _ in plain.named_modules())
    assert not any(type(m).__module__.startswith("qpa_exp") for m in plain.modules())
    trained = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert trained == set(model.generated_tensors())


def test_to_peft_of_a_random_order_is_what_evaluation_tests_even_while_training(make_qpa, batch):
    model = disturb(make_qpa("released"))
    tested = logits_of(model, batch)
    plain = model.train().to_peft().eval()
    torch.testing.assert_close(logits_of(plain, batch), tested, rtol=0, atol=1e-6)


def test_to_peft_leaves_a_model_that_still_works_and_trains(make_qpa, batch):
    model = disturb(make_qpa("tuned"))
    before = logits_of(model, batch)
    plain = model.to_peft()
    exported = logits_of(plain, batch)
    assert torch.equal(logits_of(model, batch), before)
    losses = train_a_little(model.train(), batch)
    assert losses[-1] < losses[0]
    assert not torch.equal(logits_of(model.eval(), batch), before)
    assert torch.equal(logits_of(plain, batch), exported)


def test_training_the_exported_model_leaves_the_generated_one_alone(make_qpa, batch):
    model = disturb(make_qpa("tuned"))
    before = logits_of(model, batch)
    plain = model.to_peft()
    losses = train_a_little(plain, batch)
    assert losses[-1] < losses[0]
    assert torch.equal(logits_of(model, batch), before)


def test_to_peft_shares_the_language_models_weights(make_qpa):
    model = make_qpa("tuned")
    shared = model.to_peft().get_parameter("base_model.model.transformer.wte.weight")
    assert shared is model.peft_model.get_parameter("base_model.model.transformer.wte.weight")


LOAD_WITHOUT_US = """
import sys
sys.modules["qpa_exp"] = sys.modules["bitsandbytes"] = None  # the second takes seconds
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, batch, logits = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    torch.save(model(**torch.load(batch)).logits, logits)
"""


def test_the_exported_adapter_loads_with_peft_alone(make_qpa, batch, small_directory, tmp_path):
    model = disturb(make_qpa("tuned"))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    adapter, given, logits = tmp_path / "adapter", tmp_path / "batch.pt", tmp_path / "logits.pt"
    model.to_peft().save_pretrained(adapter, save_embedding_layers=False)
    torch.save(inputs, given)
    command = [sys.executable, "-c", LOAD_WITHOUT_US, small_directory, adapter, given, logits]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(logits), logits_of(model, batch), rtol=0, atol=1e-6)


# --- what is refused --------------------------------------------------------------------------


def test_a_missing_target_names_the_nearest(make_gpt2, qpa_config):
    with pytest.raises(InputError, match=r"lm_hed is no module .* lm_head") as caught:
        get_qpa_model(make_gpt2(), lora("lm_hed"), qpa_config("tuned"))
    assert "\n" not in str(caught.value)


def test_a_target_like_nothing_names_the_layers_that_there_are(make_gpt2, qpa_config):
    with pytest.raises(InputError, match=r"zzz is no module .*c_attn.*lm_head"):
        get_qpa_model(make_gpt2(), lora("lm_head", "zzz"), qpa_config("tuned"))


def test_a_target_that_takes_no_lora_is_refused_in_one_sentence(make_gpt2, qpa_config):
    with pytest.raises(InputError) as caught:
        get_qpa_model(make_gpt2(), lora("ln_f"), qpa_config("tuned"))
    assert "\n" not in str(caught.value)


def test_off_has_no_generator(make_gpt2, qpa_config):
    with pytest.raises(InputError, match="qpa=off"):
        get_qpa_model(make_gpt2(), lora(), qpa_config("off"))


def test_one_oversized_chunk_is_a_warning(make_qpa, caplog):
    make_qpa("tuned", n_mlp=1024)
    assert "qpa.n_mlp=1024" in caplog.text
