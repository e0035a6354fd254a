"""An export loads without this package, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from qpa_exp import QPAModel, get_qpa_model
from qpa_exp.adapters.formats import export
from qpa_exp.errors import InputError
from qpa_exp.files.whole_directory import LIST

MakeGPT2 = Callable[[], GPT2LMHeadModel]


@pytest.fixture
def trained(make_gpt2: MakeGPT2, qpa_config: Callable[..., Any], batch: dict[str, Any]) -> QPAModel:
    """LoRA on the tied head and on every attention, a few steps away from its start."""
    lora = LoraConfig(r=2, target_modules=["lm_head", "c_attn"])
    model = get_qpa_model(make_gpt2(), lora, qpa_config("tuned", n_mlp=16))
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=5e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_peft_format_is_a_plain_adapter_with_equal_logits(
    trained: QPAModel, make_gpt2: MakeGPT2, batch: dict[str, Any], tmp_path: Path
) -> None:
    expected = logits(trained, batch)
    assert not torch.allclose(expected, logits(make_gpt2(), batch), atol=1e-3)
    export(trained, tmp_path / "out", "peft", "someone/base", "the card")

    loaded = PeftModel.from_pretrained(make_gpt2(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded, batch), expected, atol=1e-5, rtol=0)
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "someone/base"
    assert "qpa" not in config
    assert (tmp_path / "out" / "README.md").read_text() == "the card"


def test_merged_format_is_a_plain_model_whose_embedding_is_the_old_one(
    trained: QPAModel, make_gpt2: MakeGPT2, batch: dict[str, Any], tmp_path: Path
) -> None:
    expected = logits(trained, batch)
    export(trained, tmp_path / "out", "merged", "someone/base", "")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is GPT2LMHeadModel
    torch.testing.assert_close(logits(loaded, batch), expected, atol=1e-4, rtol=0)
    assert torch.equal(loaded.transformer.wte.weight, make_gpt2().transformer.wte.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)


def test_qpa_format_is_the_generator(
    trained: QPAModel, make_gpt2: MakeGPT2, batch: dict[str, Any], tmp_path: Path
) -> None:
    expected = logits(trained, batch)
    export(trained, tmp_path / "out", "qpa", "someone/base", "")
    loaded = QPAModel.from_pretrained(make_gpt2(), tmp_path / "out").eval()
    assert torch.equal(logits(loaded, batch), expected)


def test_an_export_is_replaced_only_when_asked_and_where_it_holds_nothing_else(
    trained: QPAModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(trained, out, "peft", "base", "")
    with pytest.raises(InputError, match="overwrite=true"):
        export(trained, out, "qpa", "base", "")
    export(trained, out, "qpa", "base", "", overwrite=True)
    assert {"adapter_model.safetensors", LIST} < {file.name for file in out.iterdir()}
    assert "QPA_LORA" in (out / "adapter_config.json").read_text(encoding="utf-8")
    (out / "precious").write_text("")
    with pytest.raises(InputError, match="holds files that no export has written"):
        export(trained, out, "qpa", "base", "", overwrite=True)
    assert (out / "precious").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_that_fails_leaves_nothing(
    make_model: Callable[[str], Any], peft_config: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import get_peft_model

    from qpa_exp.adapters.qpa_model import ClassicalModel

    for form in ("peft", "merged"):
        model = ClassicalModel(get_peft_model(make_model("gpt2"), peft_config("ffa")))
        with pytest.raises(InputError, match="give format=qpa"):
            export(model, tmp_path / "new" / "out", form, "base", "")
    with pytest.raises(InputError, match="has no generator"):
        export(model, tmp_path / "out", "qpa", "base", "")
    assert list(tmp_path.iterdir()) == []
