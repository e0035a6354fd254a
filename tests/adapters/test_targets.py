"""``peft.target_modules`` as PEFT takes it: names, last parts of names, patterns, all-linear."""

from __future__ import annotations

import re
from typing import Any

import pytest
from families import ADAPTABLE, architectures
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig

from qpa_exp.adapters.peft_model import build_for_sizes, make_peft_config, target_params
from qpa_exp.cli import compose_config
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import empty_model

SHAPES = architectures(vocabulary=61, width=16, positions=32)


def built(shape: Any, targets: str) -> Any:
    peft = compose_config(["qpa=off", f"peft.target_modules={targets}"]).peft
    return build_for_sizes(
        lambda: empty_model(shape, "AutoModelForCausalLM"), make_peft_config(peft)
    )


def adapted(model: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def pefts_own(shape: Any, targets: Any) -> set[str]:
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM")
    return adapted(get_peft_model(AutoModelForCausalLM.from_config(shape), config))


@pytest.mark.parametrize("family", sorted({*ADAPTABLE} - {"mamba"}))  # PEFT refuses its all-linear
def test_every_form_reaches_the_layers_that_peft_s_own_does(family: str) -> None:
    shape, (attention, mlp) = SHAPES[family], ADAPTABLE[family]
    linear = pefts_own(shape, "all-linear")
    assert adapted(built(shape, "all-linear")) == adapted(built(shape, "[all-linear]")) == linear
    assert adapted(built(shape, "[all-linear,lm_head]")) == linear | {"lm_head"}
    both = pefts_own(shape, [attention, mlp])
    assert adapted(built(shape, f"[{attention},{mlp}]")) == both
    assert adapted(built(shape, rf".*\.({attention}|{mlp})")) == both
    first = rf"[a-z.]+\.0\..*\.{attention}$"
    assert adapted(built(shape, first)) == pefts_own(shape, first)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("c_attn", r"regular expression for the whole name of a module.*\[c_attn\]"),
        (".*nothing.*", "none of this model fits"),
        ("'('", "is no regular expression: missing"),
        ("[all-linear,lm_hed]", "lm_hed is no module of this model; the nearest are lm_head"),
        ("3", "has the wrong type"),
        ("[1,2]", "has the wrong type"),
        ("''", "targets nothing"),
        (".*ln_f", "PEFT refuses"),
    ],
)
def test_what_reaches_nothing_is_one_sentence(targets: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        built(SHAPES["gpt2"], targets)
    assert re.search(says, str(refused.value))


def mixtral(**more: int) -> MixtralConfig:
    sizes = {
        "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    } | more  # fmt: skip
    return MixtralConfig(**sizes)


EXPERTS, ROUTER, ATTENTION, HEAD = 2 * 4 * 3 * 16 * 32, 2 * 4 * 16, 2 * 3 * 16 * 16, 61 * 16


@pytest.mark.parametrize(
    ("targets", "weights"),
    [
        ("all-linear", EXPERTS + ROUTER + ATTENTION),
        ("[all-linear,lm_head]", EXPERTS + ROUTER + ATTENTION + HEAD),
        ("[w1,w2,w3]", EXPERTS),
        ("[w2]", EXPERTS // 3),
        (r".*\.(q_proj|w1|w3)", EXPERTS // 3 * 2 + 2 * 16 * 16),
    ],
)
def test_the_experts_of_a_mixture_are_counted_once(targets: str, weights: int) -> None:
    assert target_params(built(mixtral(), targets)) == weights


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_no_mixture_has_more_targets_than_weights(model_type: str, recwarn: Any) -> None:
    width = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8}
    shape = AutoConfig.for_model(
        model_type, vocab_size=61, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **width,
    )  # fmt: skip
    model = built(shape, "[all-linear,lm_head]")
    weights = {id(p): p.numel() for p in model.get_base_model().parameters() if not p.requires_grad}
    assert 0 < target_params(model) <= sum(weights.values())


def test_a_half_of_what_is_fused_is_one_sentence() -> None:
    with pytest.raises(InputError, match="w1 without also targeting w3"):
        built(mixtral(), "[w1]")
