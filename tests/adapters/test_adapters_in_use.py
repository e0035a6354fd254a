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
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from qpa_exp.adapters.generated import QPALoraConfig
from qpa_exp.adapters.peft_model import build_peft_model
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

LORA, QPA = LoraConfig(target_modules=["q_proj"]), QPAConfig(n_mlp=8)
ONCE_MORE = {
    "lora": LORA,
    "prompts": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    "adaption_prompt": AdaptionPromptConfig(
        adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM", target_modules="self_attn"
    ),
}

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


@pytest.mark.parametrize("method", ONCE_MORE)
def test_unloaded_a_language_model_takes_another_adapter(
    method: str, make_model: Any, tokens: Tensor
):
    base, config = make_model("llama"), ONCE_MORE[method]
    expected = logits(base, tokens)
    step(get_qpa_model(base, config, QPAConfig(n_mlp=8)), tokens).unload()
    assert torch.equal(logits(base, tokens), expected)
    assert get_qpa_model(base, config, QPAConfig(n_mlp=8)).generator.n_trainable > 0


# --- one language model, one model around it ---------------------------------------------------


FIRST: dict[str, Callable[[Any], Any]] = {
    "generated": lambda base: get_qpa_model(base, LORA, QPA),
    "generated prompts": lambda base: get_qpa_model(base, ONCE_MORE["prompts"], QPA),
    "plain": lambda base: get_peft_model(base, LORA),
    "added by transformers": lambda base: base.add_adapter(copy.deepcopy(LORA)),
}
SECOND: dict[str, Callable[[Any], Any]] = {
    "get_qpa_model": lambda base: get_qpa_model(base, LORA, QPA),
    "other layers": lambda base: get_qpa_model(base, LoraConfig(target_modules=["v_proj"]), QPA),
    "get_peft_model": lambda base: get_peft_model(base, QPALoraConfig(target_modules=["q_proj"])),
    "a run's": lambda base: build_peft_model(base, copy.deepcopy(LORA), seed=1),
}


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT")
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("second", SECOND)
def test_a_second_model_around_an_adapted_one_is_refused_and_changes_nothing(
    first: str, second: str, make_model: Any, tokens: Tensor
):
    base = make_model("llama")
    model = FIRST[first](base) or base
    before, configs = logits(model, tokens), dict(getattr(base, "peft_config", {}))
    with pytest.raises(InputError, match=r"has an adapter already: call unload\(\)"):
        SECOND[second](base)
    assert torch.equal(logits(model, tokens), before)
    assert getattr(base, "peft_config", {}) == configs


REFUSED: dict[str, Callable[[Any], Any]] = {
    "by PEFT": lambda base: get_qpa_model(
        base, LoraConfig(target_modules=["q_proj", "input_layernorm"]), QPA
    ),
    "after PEFT": lambda base: get_peft_model(
        base, QPALoraConfig(target_modules=["q_proj"], generated={"shapes": {}})
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_was_refused_leaves_the_language_model_to_the_next_attempt(
    refused: str, make_model: Any, tokens: Tensor
):
    base, layers = make_model("llama"), [name for name, _ in make_model("llama").named_modules()]
    expected = logits(base, tokens)
    with pytest.raises(InputError):
        REFUSED[refused](base)
    assert [name for name, _ in base.named_modules()] == layers
    assert torch.equal(logits(get_qpa_model(base, LORA, QPA), tokens), expected)


def test_a_config_stays_as_it_was_given_and_serves_for_many_models(
    make_model: Any, tokens: Tensor, tmp_path: Path
):
    config = QPALoraConfig(r=2, target_modules="all-linear", qpa=QPAConfig(n_mlp=8))
    given = copy.deepcopy(config)
    for family, r in (("llama", 2), ("gpt2", 4)):
        config.r = given.r = r
        model = get_peft_model(make_model(family), config)
        model.add_adapter("other", config)
        assert config == given
        model.save_pretrained(str(tmp_path / family))
        for loaded in (PeftModel.from_pretrained, QPAModel.from_pretrained):
            again = loaded(make_model(family), str(tmp_path / family))
            close(logits(again, tokens), logits(model, tokens))


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
    "weighted": (
        lambda m, _: m.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both"),
        r"save the to_peft\(\) of each",
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


def test_the_status_says_which_adapter_is_trained(make: Any):
    model = make("other")
    assert model.get_model_status().requires_grad == {"default": True, "other": False}
    model.set_adapter("other")
    assert model.get_model_status().requires_grad == {"default": False, "other": True}


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
