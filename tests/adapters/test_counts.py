"""Counts by formula against models that are built, and what they need imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from qpa_exp.adapters import counts
from qpa_exp.adapters.catalogue import METHODS, check_length
from qpa_exp.cli import compose_config, conf_dir
from qpa_exp.config import Config, DataConfig, ModelConfig, PeftMethodConfig
from qpa_exp.errors import InputError

NAMED = sorted({path.stem for path in (conf_dir() / "model").glob("[a-z]*.yaml")} - {"hf"})
LAYERS = ("n_layer", "num_hidden_layers")
BY_FORMULA = ["lora", "dora", "prefix", "ffa"]


def by_both(config: Config) -> tuple[Any, Any]:
    built = counts._by_building(config, "AutoModelForCausalLM", "CAUSAL_LM")
    return counts._by_formula(config), built


@pytest.mark.parametrize("model", NAMED)
@pytest.mark.parametrize("method", BY_FORMULA)
def test_a_formula_counts_what_is_built(model: str, method: str) -> None:
    config = compose_config([f"model={model}", f"peft={method}"])
    for key in LAYERS:  # of the layers before the head one is enough
        if key in config.model.architecture:
            config.model.architecture[key] = 1
    formula, built = by_both(config)
    assert formula == built
    assert formula is not None


def test_no_other_method_states_a_formula_that_is_not_tried() -> None:
    peft = PeftMethodConfig(r=4, options={})
    stated = {name for name in METHODS if METHODS[name].head_count(peft, 48, 16) is not None}
    assert stated <= set(BY_FORMULA)


@pytest.mark.parametrize(
    "overrides",
    [
        ["peft.target_modules=[lm_head,c_attn]"],
        ["peft.r=null", "peft.lora_alpha=8"],
        ["peft.r=129"],
        ["peft.options.lora_bias=true"],
        ["peft=prefix", "peft.options.length=many"],
        ["peft=ffa", "peft.options.activation=sine"],
        ["model.architecture.model_type=opt"],
        ["peft=vera"],
    ],
)
def test_what_no_formula_covers_is_built(overrides: list[str]) -> None:
    assert counts._by_formula(compose_config(overrides)) is None


def test_a_lora_with_pefts_own_rank_is_counted_by_building() -> None:
    config = compose_config(["peft.r=null", "peft.lora_alpha=8", "qpa=off"])
    assert counts.plan_counts(config).trainable_params == 8 * (16384 + 128)


def test_planning_a_head_needs_neither_torch_nor_peft() -> None:
    program = f"""
import sys
from qpa_exp.plan import main
for method in {BY_FORMULA}:
    for model in {NAMED}:
        main([f"model={{model}}", f"peft={{method}}", "format=json"])
main(["model=gpt2", "peft.r=4"])
sys.exit(" ".join({{"torch", "transformers", "peft"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.count('"n_chunks"') == len(BY_FORMULA) * len(NAMED)


# --- positions --------------------------------------------------------------------------------


def of_length(length: int, **options: Any) -> Config:
    return Config(
        model=ModelConfig(name="small"),
        peft=PeftMethodConfig(options=options),
        data=DataConfig(max_length=length),
    )


@pytest.mark.parametrize("length", [2, 31, 32])
def test_examples_within_the_positions_are_allowed(length: int) -> None:
    check_length(of_length(length), 32)
    check_length(of_length(length), None)


def test_examples_beyond_the_positions_are_refused_with_the_limit() -> None:
    with pytest.raises(InputError, match=r"data\.max_length=33 .* 32 positions .*at most 32"):
        check_length(of_length(33), 32)


def test_virtual_tokens_take_positions() -> None:
    check_length(of_length(28, num_virtual_tokens=4), 32)
    with pytest.raises(InputError, match=r"32 positions .*less 4 virtual tokens: give at most 28"):
        check_length(of_length(29, num_virtual_tokens=4), 32)


@pytest.mark.parametrize("length", [16, 1024])
def test_positions_are_checked_without_building(length: int) -> None:
    overrides = ["model=gpt2", "peft=prefix", f"data.max_length={length}"]
    assert counts.plan_counts(compose_config(overrides)).generated_params == length * 768
    with pytest.raises(InputError, match=r"data\.max_length=1025 .*at most 1024"):
        counts.plan_counts(compose_config(["model=gpt2", "data.max_length=1025"]))
