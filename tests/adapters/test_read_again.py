"""What is trained and saved is loaded again, or it is refused before it is trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import KasaConfig
from torch import Tensor

from qpa_exp.adapters.peft_model import _is_slow, build_peft_model
from qpa_exp.adapters.qpa_model import ClassicalModel, QPAModel, get_qpa_model
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

KINDS = ["generated", "classical"]
READ: dict[str, dict[str, Any]] = {
    "many alternatives": {"target_modules": "(.*q_proj|.*k_proj|.*v_proj|.*o_proj|.*up_proj)"},
    "a table of options": {"kasa_config": KasaConfig()},
    "a start of its own": {"init_lora_weights": "eva"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "a repeated group": {"target_modules": r"model\.layers\.(\d+\.)+self_attn\.q_proj"},
    "many repetitions": {"target_modules": ".*l.*a.*y.*e.*q_proj"},
    "a random start": {"init_lora_weights": "pissa_niter_2"},
    "copied layers": {"layer_replication": [[0, 2], [1, 2]]},
}
NEVER_GENERATED: dict[str, dict[str, Any]] = {
    "rows of the embedding": {"trainable_token_indices": [1, 2]},
    "tied tensors": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied targets": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
}


def lora(options: dict[str, Any]) -> LoraConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's on the options
        given = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
        return LoraConfig(**given)


def build(kind: str, model: Any, options: dict[str, Any]) -> Any:
    if kind == "generated":
        return get_qpa_model(model, lora(options), QPAConfig(n_mlp=8))
    return ClassicalModel(build_peft_model(model, lora(options), seed=1))


def disturb(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", READ)
def test_what_is_safe_is_read(
    case: str, kind: str, make_model: Any, tokens: Tensor, tmp_path: Path
):
    model = build(kind, make_model("llama"), READ[case])
    disturb(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(make_model("llama"), tmp_path)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_not_built(case: str, kind: str, make_model: Any):
    with pytest.raises(InputError, match="could not be loaded again once it is saved"):
        build(kind, make_model("llama"), REFUSED[case])


@pytest.mark.parametrize("case", NEVER_GENERATED)
def test_an_option_that_no_generator_can_have_is_refused_at_once(case: str, make_model: Any):
    with pytest.raises(InputError, match="leave it out"):
        build("generated", make_model("llama"), NEVER_GENERATED[case])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_precision_are_cast(
    kind: str, dtype: torch.dtype, make_model: Any, tokens: Tensor, tmp_path: Path
):
    model = build(kind, make_model("llama"), {})
    disturb(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(make_model("llama"), tmp_path)
    expected = logits(model.float(), tokens)
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "pattern",
    [
        "lm_head", r"model\.layers\.\d+\.self_attn\.(q|v)_proj", r"(?i).*Q_PROJ", "(?:a|b)?c",
        r"^(?!.*lm_head).*\.(?:q_proj|v_proj)$", r".*\.[^.*+(]*proj", "(.*a|.*b|.*c|.*d|.*e)",
        rf".*layers\.({'|'.join(map(str, range(32)))})\..*\.(q_proj|k_proj|v_proj|o_proj)",
    ],
)  # fmt: skip
def test_a_pattern_of_few_ways_is_fast(pattern: str):
    assert not _is_slow(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "((a*)b)*", "(?:a{1,50}){1,50}", "(?P<n>a)+", ".*.*.*.*.*x", "(.*a|.*b)" * 5,
        "a?" * 30 + "a" * 30, "(a|a)" * 40, "(?x)(a+) +", "(?#()a", "(a", "a)",
    ],
)  # fmt: skip
def test_a_pattern_that_may_take_for_ever_is_found(pattern: str):
    assert _is_slow(pattern)


def test_a_table_of_options_names_no_file(make_model: Any, tmp_path: Path):
    from peft.tuners.lora.config import CordaConfig

    options = {"corda_config": CordaConfig(cache_file=str(tmp_path / "x.pt"))}
    with pytest.raises(InputError, match=r"corda_config\.cache_file .* no file may set"):
        build("generated", make_model("llama"), options)


def test_what_is_refused_leaves_the_language_model_as_it_was(make_model: Any):
    base = make_model("llama")
    for options in REFUSED.values():
        with pytest.raises(InputError):
            build("generated", base, options)
    names = [name for name, _ in base.named_modules()]
    assert names == [name for name, _ in make_model("llama").named_modules()]
    assert isinstance(build("generated", base, {}), QPAModel)
