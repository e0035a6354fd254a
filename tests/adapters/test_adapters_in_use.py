"""What is done with a trained adapter: merge, copy, disable, switch; and what is refused."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig
from torch import Tensor, nn

from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def make(make_model: Any) -> Callable[..., QPAModel]:
    """A Llama with a generated LoRA; ``make("other")`` has a second adapter of this name, too."""

    def built(*others: str, seed: int = 1, **options: Any) -> QPAModel:
        lora = LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options))
        model = get_qpa_model(make_model("llama"), lora, QPAConfig(n_mlp=8, seed=seed))
        for name in others:
            model.add_adapter(name, model.peft_config["default"])
        return model

    return built


def step(model: QPAModel, tokens: Tensor) -> QPAModel:
    """Train the active adapter; there is no forward pass after the last step."""
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **options).logits


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# --- the tensors are those of the parameters, whoever reads them ------------------------------


def read_delta(model: QPAModel, _: Tensor) -> Tensor:
    layer: Any = model.get_submodule(LAYER)
    return layer.get_delta_weight("default").detach()


def read_merged(model: QPAModel, tokens: Tensor) -> Tensor:
    model.merge_adapter()
    return logits(model, tokens)


def read_by_name(model: QPAModel, tokens: Tensor) -> Tensor:
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    return logits(model, tokens, adapter_names=["default"] * len(tokens))


@pytest.mark.parametrize("read", [read_delta, read_merged, read_by_name])
@pytest.mark.parametrize("loaded", [False, True])
def test_tensors_are_up_to_date_without_a_forward_pass(
    read: Any, loaded: bool, make: Any, make_model: Any, tokens: Tensor, tmp_path: Path
):
    model = step(make(), tokens)
    expected = read(copy.deepcopy(model).eval(), tokens)
    if loaded:
        model.save_pretrained(tmp_path)
        model = PeftModel.from_pretrained(make_model("llama"), str(tmp_path))
    close(read(model, tokens), expected)
    assert (read(make(), tokens) - expected).abs().max() > 1e-3


def test_what_was_merged_is_taken_out_again(make: Any, make_model: Any, tokens: Tensor):
    model = step(make(), tokens)
    trained = logits(copy.deepcopy(model), tokens)
    model.merge_adapter()
    for parameter in model.generator.parameters():
        parameter.data.add_(0.1)
    close(logits(model, tokens), trained)
    with pytest.raises(InputError, match="call unmerge_adapter"):
        model.to_peft()
    twin = copy.deepcopy(model)
    for merged in (model, twin):
        merged.unmerge_adapter()
        assert (logits(merged, tokens) - trained).abs().max() > 1e-3
        with merged.disable_adapter():
            close(logits(merged, tokens), logits(make_model("llama"), tokens))


def test_a_named_adapter_is_merged(make: Any, tokens: Tensor):
    model = make("other")
    model.set_adapter("other")
    trained = logits(step(model, tokens), tokens)
    model.set_adapter("default")
    close(logits(model.merge_and_unload(adapter_names=["other"]), tokens), trained)
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(InputError, match=r"nope is no adapter of this model: give .*other"):
            call(adapter_names=["nope"])


def test_a_merge_that_peft_refuses_is_told_in_its_words(make: Any, tokens: Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(lora_bias=True)
    with pytest.raises(InputError, match=r"lora cannot be merged .* base layer has no bias"):
        model.merge_and_unload()
    model = step(make(), tokens)
    with torch.no_grad():
        model.generator.circuit.theta.fill_(torch.nan)
    with pytest.raises(InputError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)


# --- copies -----------------------------------------------------------------------------------


USES: dict[str, Callable[[QPAModel], Any]] = {
    "to_peft": lambda model: model.to_peft(),
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "unload": lambda model: model.unload(),
    "add_adapter": lambda model: model.add_adapter("third", model.peft_config["default"]),
    "delete_adapter": lambda model: model.delete_adapter("other"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens"]])
def test_what_is_done_to_a_copy_leaves_the_other_alone(
    use: str, targets: list[str], make: Any, tokens: Tensor
):
    for used in (0, 1):
        model = step(make("other", target_modules=targets), tokens)
        both = [model, copy.deepcopy(model)]
        trained = logits(model, tokens)
        USES[use](both[used])
        left = both[1 - used]
        assert torch.equal(logits(left, tokens), trained)
        USES[use](left)


def test_the_language_model_stands_in_the_state_as_this_models_and_as_the_methods(make: Any):
    names = [name for name in make().state_dict() if name.endswith("0.self_attn.k_proj.weight")]
    assert len(names) == 2


# --- disabled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "prompts"])
def test_disabling_nests_and_is_copied(method: str, make: Any, make_model: Any, tokens: Tensor):
    if method == "lora":
        model = make()
    else:
        prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        model = get_qpa_model(make_model("llama"), prompts, QPAConfig(n_mlp=8))
    adapted = logits(step(model, tokens), tokens)
    base = logits(make_model("llama"), tokens)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(logits(model, tokens), base)
        assert torch.equal(logits(model, tokens), base)
        assert torch.equal(logits(copy.deepcopy(model), tokens), base)
        assert torch.equal(logits(model.to_peft(), tokens), adapted)
    assert torch.equal(logits(model, tokens), adapted)


# --- several adapters -------------------------------------------------------------------------


def test_a_step_ends_where_another_adapter_is_activated(make: Any, tokens: Tensor):
    model = make("other").train()
    trained = model.generator
    model.begin_step()
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.set_adapter("other")
    model.end_step()
    assert all(p.grad is not None for p in trained.parameters())
    assert all(p.grad is None for p in model.generator.parameters())


WRONG: dict[str, tuple[Callable[[QPAModel, Path], Any], str]] = {
    "two at once": (
        lambda m, _: m.base_model.set_adapter(["default", "other"]), "One generated adapter acts",
    ),
    "the only one": (
        lambda m, _: (m.delete_adapter("other"), m.delete_adapter("default")), "the only adapter",
    ),
    "no such name": (
        lambda m, place: m.save_pretrained(place, selected_adapters=["nope"]), "nope is no adapter",
    ),
    "a file": (
        lambda m, place: ((place / "x").touch(), m.save_pretrained(place / "x")), "x is a file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_sentence_and_the_model_goes_on(
    case: str, make: Any, tokens: Tensor, tmp_path: Path
):
    model, (call, sentence) = make("other"), WRONG[case]
    before = logits(model, tokens)
    with pytest.raises(InputError, match=sentence):
        call(model, tmp_path)
    assert torch.equal(logits(model, tokens), before)


LORA, QPA = LoraConfig(target_modules=["q_proj"]), QPAConfig(n_mlp=8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("gpt2", LORA, QPA), "model is 'gpt2': give an object of PreTrainedModel"),
        ((nn.Linear(2, 2), LORA, QPA), "give an object of PreTrainedModel"),
        ((None, {"r": 2}, QPA), "peft_config is {'r': 2}: give an object of PeftConfig"),
        ((None, LORA, {"n_mlp": 8}), "config is {'n_mlp': 8}: give an object of QPAConfig"),
    ],
)
def test_what_a_model_is_built_from_has_its_types(given: Any, sentence: str, make_model: Any):
    unchecked = inspect.unwrap(get_qpa_model)  # these tests' own type checks stand before it
    model, *configs = given
    with pytest.raises(InputError, match=sentence):
        unchecked(model or make_model("llama"), *configs)


CHANGES_NOTHING = {
    "to_peft": lambda model, _: model.to_peft(),
    "merge_and_unload": lambda model, _: model.merge_and_unload(),
    "merge and unmerge": lambda model, _: (model.merge_adapter(), model.unmerge_adapter()),
    "copy": lambda model, _: copy.deepcopy(model),
    "save": lambda model, place: model.save_pretrained(place),
    "switch": lambda model, _: (model.set_adapter("other"), model.set_adapter("default")),
}


@pytest.mark.parametrize("use", CHANGES_NOTHING)
def test_what_is_trained_stays_what_is_trained(make: Any, tokens: Tensor, tmp_path: Path, use: str):
    model = step(make("other"), tokens)
    before, weights = logits(model, tokens), {n: p.clone() for n, p in model.named_parameters()}
    CHANGES_NOTHING[use](model, tmp_path)
    close(logits(model, tokens), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in weights if ".generators.default." in name}
    assert [tensor.ndim for tensor in model.trained_tensors()] == [1]
    for name, parameter in model.named_parameters():
        close(parameter, weights[name])
