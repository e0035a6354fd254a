"""A saved generator and an adapter from an enemy: one sentence, and nothing is built or run."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import SECRET, files_like
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save
from transformers import GPT2Config, GPT2LMHeadModel

from qpa_exp.adapters.qpa_model import ClassicalModel, QPAModel, get_qpa_model
from qpa_exp.adapters.saved_generator import CONFIG, WEIGHTS, read
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ADAPTER, TENSORS = "adapter_config.json", "adapter_model.safetensors"
EXAMPLES = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@functools.cache
def base() -> GPT2LMHeadModel:
    """One for all: a refusal leaves it as it was; what loads on it calls ``cache_clear``."""
    shape = {"vocab_size": 20, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape))


LORA = {"r": 2, "target_modules": ["lm_head"], "task_type": "CAUSAL_LM"}
SAVED: dict[str, dict[str, bytes]] = {}


@pytest.fixture(scope="module", autouse=True)
def _save(tmp_path_factory: pytest.TempPathFactory) -> None:
    generator, adapter = (tmp_path_factory.mktemp(name) for name in ("generator", "adapter"))
    config = QPAConfig(n_mlp=8, mapping_hidden=[4], n_layers=1)
    get_qpa_model(base(), LoraConfig(**LORA), config).save_pretrained(generator)
    base.cache_clear()
    ClassicalModel(get_peft_model(base(), LoraConfig(**LORA))).save_pretrained(adapter)
    base.cache_clear()
    for directory in (generator, adapter):
        SAVED[directory.name.rstrip("0")] = {f.name: f.read_bytes() for f in directory.iterdir()}


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``lay("generator", CONFIG, content)``: the saved directory with one file in another form."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    base.cache_clear()

    def lay(kind: str, name: str, content: bytes) -> Path:
        for file, valid in (SAVED[kind] | {name: content}).items():
            (tmp_path / file).write_bytes(valid)
        return tmp_path

    return lay


def attempt(call: Callable[[], Any]) -> str:
    """The sentence of the refusal; empty where there is none. Any other error fails the test."""
    try:
        call()
    except InputError as error:
        sentence = str(error)
    else:
        sentence = ""
    assert "\n" not in sentence
    assert SECRET not in sentence
    return sentence


def load_generator(directory: Path) -> None:
    read(directory)
    QPAModel.from_pretrained(base(), directory)
    base.cache_clear()


def load_adapter(directory: Path) -> None:
    ClassicalModel.from_pretrained(base(), directory)
    base.cache_clear()


def test_what_is_valid_is_loaded(lay):
    assert not attempt(lambda: load_generator(lay("generator", "x", b"")))
    assert not attempt(lambda: load_adapter(lay("adapter", "x", b"")))


@EXAMPLES
@given(data=st.data())
def test_a_generators_config(lay, data):
    content = data.draw(files_like(json.loads(SAVED["generator"][CONFIG])))
    attempt(lambda: load_generator(lay("generator", CONFIG, content)))


@EXAMPLES
@given(data=st.data())
def test_an_adapters_config(lay, data):
    content = data.draw(files_like(json.loads(SAVED["adapter"][ADAPTER])))
    attempt(lambda: load_adapter(lay("adapter", ADAPTER, content)))


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Weights that are cut, of other shapes or types, not finite, or described by nonsense."""
    header = st.sampled_from([b"{" * 10_000, b"{}", b"[]", b"\xff", b'{"a":{"dtype":"F32"}}'])
    lengths = st.sampled_from([0, 8, 2**31, 2**63])
    return st.one_of(
        st.binary(max_size=64),
        st.integers(0, len(valid) - 1).map(lambda length: valid[:length]),
        st.builds(lambda n, h: struct.pack("<Q", n) + h, lengths, header),
        st.builds(
            lambda place, byte: valid[:place] + bytes([byte]) + valid[place + 1 :],
            st.integers(0, len(valid) - 1),
            st.integers(0, 255),
        ),
    )


@EXAMPLES
@given(data=st.data())
def test_a_generators_weights(lay, data):
    content = data.draw(damaged(SAVED["generator"][WEIGHTS]))
    attempt(lambda: read(lay("generator", WEIGHTS, content)))


@EXAMPLES
@given(data=st.data())
def test_an_adapters_weights(lay, data):
    content = data.draw(damaged(SAVED["adapter"][TENSORS]))
    attempt(lambda: load_adapter(lay("adapter", TENSORS, content)))


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "NaN": lambda w: w * torch.nan,
    "infinite": lambda w: w + torch.inf,
    "whole numbers": lambda w: w.long(),
    "longer": lambda w: torch.cat([w, w]),
    "flat": lambda w: w.flatten(),
    "missing": lambda _: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "name"), [("generator", WEIGHTS), ("adapter", TENSORS)])
def test_one_tensor_that_is_another_is_refused(lay, kind, name, change):
    directory = lay(kind, "x", b"")
    weights = load_file(directory / name)
    first = sorted(weights)[-1]
    new = CHANGES[change](weights.pop(first))
    weights |= {} if new is None else {first: new}
    lay(kind, name, save(weights))
    assert attempt(lambda: (load_generator if kind == "generator" else load_adapter)(directory))


NAMED = {
    "megatron_core": "antigravity", "auto_mapping": {"parent_library": "antigravity"},
    "tokenizer_kwargs": {"trust_remote_code": True}, "layer_replication": [[0, 10**9]],
    "target_modules": "(a+)+$", "rank_pattern": {"(x+)+": 1}, "peft_type": "XLORA", "later": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", NAMED)
def test_nothing_that_a_method_names_is_imported_fetched_or_run(lay, key):
    for kind, name in (("generator", CONFIG), ("adapter", ADAPTER)):
        record = json.loads(SAVED[kind][name])
        (record["peft_config"] if kind == "generator" else record)[key] = NAMED[key]
        directory = lay(kind, name, json.dumps(record).encode())
        load = load_generator if kind == "generator" else load_adapter
        assert attempt(lambda load=load, directory=directory: load(directory))


def test_a_prompts_tokenizer_takes_no_options_from_a_file(lay):
    record = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1).to_dict()
    record |= {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}
    record |= {"tokenizer_name_or_path": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    content = json.dumps(record, default=str).encode()
    assert "no file may set" in attempt(lambda: load_adapter(lay("adapter", ADAPTER, content)))


@pytest.mark.parametrize("device", ["http://x/y", "../../secret", "/dev/sda", "${oc.env:HF_TOKEN}"])
def test_a_device_is_a_name(lay, device):
    record = json.loads(SAVED["generator"][CONFIG])
    record["qpa_config"]["device"] = device
    directory = lay("generator", CONFIG, json.dumps(record).encode())
    assert attempt(lambda: load_generator(directory))
