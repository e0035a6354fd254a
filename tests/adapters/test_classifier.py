"""A classifier: the method's tensors are generated, its new head is trained as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from qpa_exp.adapters.counts import count, plan_counts
from qpa_exp.adapters.qpa_model import AdaptedModel, QPAModel, adapt, get_qpa_model, load_adapted
from qpa_exp.errors import InputError

FAMILIES = {"gpt2": "c_attn", "llama": "q_proj"}
CLASSES, WIDTH = 3, 16
HEAD = CLASSES * WIDTH

every_family = pytest.mark.parametrize("family", FAMILIES)
both_kinds = pytest.mark.parametrize("variant", ["tuned", "off"])


@pytest.fixture
def make_base(architectures: Any) -> Callable[[str], Any]:
    """``make_base("gpt2")``: a small classifier, its head at random numbers of its own."""

    def make(family: str, seed: int = 0) -> Any:
        shape = type(architectures[family])(**architectures[family].to_dict())
        shape.num_labels, shape.pad_token_id = CLASSES, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForSequenceClassification.from_config(shape).eval()

    return make


@pytest.fixture
def make_adapted(make_base: Any, run_config: Any) -> Callable[..., AdaptedModel]:
    def make(family: str, variant: str, method: str = "lora") -> AdaptedModel:
        config = run_config(method, f"peft.target_modules=[{FAMILIES[family]}]")
        config.qpa.variant = variant
        return adapt(make_base(family), config, "SEQ_CLS")

    return make


def scores(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def train(model: AdaptedModel, tokens: Tensor, steps: int = 5) -> list[float]:
    labels = torch.arange(len(tokens)) % CLASSES
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    model.eval()
    return losses


@every_family
def test_the_generator_and_the_head_are_what_is_trained(
    family: str, make_adapted: Any, tokens: Tensor
) -> None:
    model = make_adapted(family, "tuned")
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    place = "base_model.generators.default."
    head = own - {f"{place}{name}" for name, _ in model.generator.named_parameters()}
    assert [name.split(".")[-4:] for name in head] == [
        ["score", "modules_to_save", "default", "weight"]
    ]
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = train(model, tokens)
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if name in before
               and not torch.equal(p, before[name])}  # fmt: skip
    assert head < changed
    assert f"{place}circuit.theta" in changed


def test_it_prints_all_that_is_trained(
    make_adapted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_adapted("llama", "tuned")
    model.print_trainable_parameters()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == model.generator.n_trainable + HEAD
    assert f"trainable params: {trained:,} || " in capsys.readouterr().out


@every_family
@both_kinds
def test_it_starts_at_the_base_model_and_disabled_it_is_that(
    family: str, variant: str, make_base: Any, make_adapted: Any, tokens: Tensor
) -> None:
    base = scores(make_base(family), tokens)
    model = make_adapted(family, variant).eval()
    assert torch.equal(scores(model, tokens), base)
    train(model, tokens)
    trained = scores(model, tokens)
    assert not torch.equal(trained, base)
    with model.disable_adapter():
        assert torch.equal(scores(model, tokens), base)
    assert torch.equal(scores(model, tokens), trained)
    losses = train(model, tokens)  # and it goes on
    assert losses[-1] < losses[0]


@every_family
@both_kinds
def test_saved_and_loaded_on_a_base_whose_head_is_another(
    family: str, variant: str, make_base: Any, make_adapted: Any, run_config: Any,
    tokens: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    model = make_adapted(family, variant)
    train(model, tokens)
    model.save_pretrained(tmp_path)
    base = make_base(family)
    torch.nn.init.normal_(base.score.weight)
    config = run_config("lora")
    config.qpa.variant = variant
    loaded = load_adapted(base, tmp_path, config)
    assert torch.equal(scores(loaded, tokens), scores(model, tokens))


@every_family
def test_to_peft_is_the_same_classifier_and_shares_no_trained_tensor(
    family: str, make_base: Any, make_adapted: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = make_adapted(family, "tuned")
    train(model, tokens)
    plain = model.to_peft()
    expected = scores(model, tokens)
    torch.testing.assert_close(scores(plain, tokens), expected, rtol=0, atol=1e-6)
    train(model, tokens)
    torch.testing.assert_close(scores(plain, tokens), expected, rtol=0, atol=1e-6)
    plain.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(family), str(tmp_path)).eval()
    torch.testing.assert_close(scores(loaded, tokens), expected, rtol=0, atol=1e-6)


@both_kinds
def test_counted_as_planned_the_head_among_what_is_trained(
    variant: str, make_adapted: Any, architectures: Any, run_config: Any
) -> None:
    config = run_config("lora", "peft.target_modules=[c_attn]")
    config.qpa.variant = variant
    config.model.architecture = architectures["gpt2"].to_dict() | {
        "id2label": {0: "a", 1: "b", 2: "c"}, "pad_token_id": 0,
    }  # fmt: skip
    planned = plan_counts(
        config, auto_class="AutoModelForSequenceClassification", task_type="SEQ_CLS"
    )
    model = make_adapted("gpt2", variant)
    assert planned == count(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.trainable_params == trained
    assert planned.generated_params == 2 * 4 * (WIDTH + 3 * WIDTH)
    if variant == "off":
        assert trained == planned.generated_params + HEAD


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix_tuning", "oft"])
def test_other_methods_train_a_classifier_too(
    method: str, make_base: Any, run_config: Any, tokens: Tensor
) -> None:
    targets = [] if method == "prefix_tuning" else ["peft.target_modules=[q_proj]"]
    for variant in ("tuned", "off"):
        config = run_config(method, *targets)
        config.qpa.variant = variant
        model = adapt(make_base("llama"), config, "SEQ_CLS")
        losses = train(model, tokens, steps=8)
        assert losses[-1] < losses[0]


def test_a_classifier_without_lm_head_names_its_layers(make_base: Any) -> None:
    with pytest.raises(InputError, match=r"lm_head is no module .*c_attn"):
        get_qpa_model(
            make_base("gpt2"),
            LoraConfig(target_modules=["lm_head"], task_type="SEQ_CLS"),
            small_generator(),
        )


def test_pefts_own_classifier_is_the_same(make_base: Any, tokens: Tensor) -> None:
    config = LoraConfig(r=4, target_modules=["c_attn"], task_type="SEQ_CLS")
    plain = get_peft_model(make_base("gpt2"), config).eval()
    model = get_qpa_model(make_base("gpt2"), config, small_generator()).eval()
    assert isinstance(model, QPAModel)
    assert torch.equal(scores(model, tokens), scores(plain, tokens))


def small_generator() -> Any:
    from qpa_exp.config import QPAConfig

    return QPAConfig(n_mlp=8, n_layers=2)
