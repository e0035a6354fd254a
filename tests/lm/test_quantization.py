"""The frozen weights in 8 and 4 bits, through bitsandbytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from qpa_exp.adapters.counts import count
from qpa_exp.adapters.formats import export
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import ModelConfig, QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import load_model

pytest.importorskip("bitsandbytes")

# bitsandbytes computes 4-bit products in blocks: the layers of the smallest model are below one.
WIDTH = 64

KINDS = ["int8", "nf4"]
TARGETS = [["lm_head"], ["c_attn", "c_fc"]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=61, n_embd=WIDTH, n_layer=2, n_head=2, initializer_range=0.1)
    GPT2LMHeadModel(shape).save_pretrained(place)
    return place


def unquantized(directory: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(directory).eval()


def quantized(directory: Path, kind: str) -> Any:
    return load_model(ModelConfig(name="hf", name_or_path=str(directory), quantization=kind))


def adapted(directory: Path, kind: str, targets: list[str]) -> QPAModel:
    lora = LoraConfig(r=2, target_modules=targets)
    return get_qpa_model(quantized(directory, kind), lora, QPAConfig(n_mlp=16, scale=0.1))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4)])
def test_the_backbone_is_quantized_and_the_head_is_not(directory, kind, bits, batch):
    model = quantized(directory, kind)
    layer = model.transformer.h[0].attn.c_attn
    full = unquantized(directory).transformer.h[0].attn.c_attn.weight
    assert layer.weight.numel() * layer.weight.element_size() * 8 == full.numel() * bits
    assert model.lm_head.weight.dtype == torch.float32
    logits, exact = (
        model(batch["input_ids"]).logits,
        unquantized(directory)(batch["input_ids"]).logits,
    )
    assert 0 < (logits - exact).norm() / exact.norm() < 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS, ids=["head", "blocks"])
def test_it_starts_at_the_base_model_and_trains(directory, batch, kind, targets):
    expected = quantized(directory, kind)(**batch).loss.item()
    model = adapted(directory, kind, targets).train()
    optimizer = torch.optim.AdamW(model.generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS, ids=["head", "blocks"])
def test_it_leaves_an_adapter_that_peft_loads(directory, batch, kind, targets, tmp_path):
    model = adapted(directory, kind, targets).eval()
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(0.1)
    expected = model(**batch).logits
    export(model, tmp_path / "out", "peft", "someone/base", "the card")
    loaded = PeftModel.from_pretrained(quantized(directory, kind), tmp_path / "out").eval()
    # bitsandbytes rounds what enters its products: a last bit there becomes a whole step.
    near = 1e-5 if targets == ["lm_head"] else 0.03
    torch.testing.assert_close(loaded(**batch).logits, expected, atol=near, rtol=near)


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_layers_are_counted_as_what_they_are(directory, kind, capsys):
    lora, config = LoraConfig(r=2, target_modules=["c_attn"]), QPAConfig(n_mlp=16)
    plain = get_qpa_model(unquantized(directory), lora, config)
    model = adapted(directory, kind, ["c_attn"])
    assert count(model) == count(plain)
    model.print_trainable_parameters()
    plain.print_trainable_parameters()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_into_quantized_layers_is_refused(directory, kind, tmp_path):
    with pytest.raises(InputError, match="is quantized"):
        export(adapted(directory, kind, ["c_attn"]), tmp_path / "out", "merged", "b", "")
    assert not (tmp_path / "out").exists()


def test_without_bitsandbytes_one_sentence_says_what_to_install(directory, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'qpa-exp\[quantization\]'"):
        quantized(directory, "int8")
