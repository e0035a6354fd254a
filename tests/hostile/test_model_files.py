"""A model's directory that holds anything at all: it loads, or is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from qpa_exp import plan
from qpa_exp.config import ModelConfig
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import BUNDLED, empty_model, load_architecture, load_model, load_tokenizer

GARBAGE = settings(max_examples=200, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(), st.sampled_from([-1, 0, 1, 2, 10**6, 2**31, 10**12, 2**63, 10**30]), st.floats()
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def at(place: object, **fields: object) -> ModelConfig:
    return ModelConfig(name="hf", name_or_path=str(place), **fields)


def sentence_of(load: Callable[..., Any], *given: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(*given, **named)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


def loads_or_is_refused(load: Callable[[ModelConfig], Any], config: ModelConfig) -> None:
    sentence = config.name_or_path
    try:
        load(config)
    except InputError as error:
        sentence = str(error)
    assert config.name_or_path in sentence
    assert "\n" not in sentence


@pytest.fixture(scope="module")
def proper_model(small_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than small: it is loaded hundreds of times."""
    directory = tmp_path_factory.mktemp("models") / "proper"
    shutil.copytree(small_directory, directory)
    shape = GPT2Config(
        vocab_size=61, n_embd=4, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(shape).save_pretrained(directory)
    return directory


@pytest.fixture
def model_copy(proper_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(proper_model, tmp_path / "copy")


# --- garbage ------------------------------------------------------------------------------------

KEYS = [
    *GPT2Config().to_dict(), "auto_map", "quantization_config", "torch_dtype", "num_labels",
    "text_config", "num_hidden_layers", "base_model_tp_plan", "attn_implementation", "rope_scaling",
]  # fmt: skip


@GARBAGE
@given(
    changed=st.one_of(
        st.binary(max_size=60),
        values.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3),
    )
)
def test_any_config_file(model_copy: Path, proper_model: Path, changed: Any) -> None:
    if isinstance(changed, dict):
        proper = json.loads((proper_model / "config.json").read_text())
        changed = json.dumps(proper | changed).encode()
    (model_copy / "config.json").write_bytes(changed)
    loads_or_is_refused(load_model, at(model_copy))


@GARBAGE
@given(data=st.data())
def test_any_weights_file(model_copy: Path, proper_model: Path, data: st.DataObject) -> None:
    proper = (proper_model / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", proper[:8])[0]
    header, tensors = json.loads(proper[8 : 8 + length]), proper[8 + length :]
    kind = data.draw(st.sampled_from(["bytes", "cut", "length", "flip", "header", "entry"]))
    if kind == "bytes":
        content = data.draw(st.binary(max_size=100))
    elif kind == "cut":
        content = proper[: data.draw(st.integers(0, len(proper) - 1))]
    elif kind == "length":
        content = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + proper[8:]
    elif kind == "flip":
        place = data.draw(st.integers(0, 8 + length))
        content = (
            proper[:place] + data.draw(st.binary(min_size=1, max_size=9)) + proper[place + 1 :]
        )
    else:
        if kind == "entry":
            name = data.draw(st.sampled_from(sorted(header)))
            field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            changed = {name: dict(header[name]) | {field: data.draw(values)}}
        else:
            changed = data.draw(st.dictionaries(st.sampled_from(sorted(header)), values))
        text = json.dumps(header | changed).encode()
        content = struct.pack("<Q", len(text)) + text + tensors
    (model_copy / "model.safetensors").unlink()  # another model may have the old one mapped
    (model_copy / "model.safetensors").write_bytes(content)
    loads_or_is_refused(load_model, at(model_copy))


@GARBAGE
@given(
    architecture=st.dictionaries(
        st.sampled_from(["vocab_size", "n_embd", "n_layer", "n_head", "n_positions", *KEYS]), values
    ),
    model_type=st.one_of(st.sampled_from(["gpt2", "llama", "gemma"]), values),
)
def test_any_architecture(architecture: dict[str, Any], model_type: Any) -> None:
    small = {"vocab_size": 7, "n_embd": 4, "n_layer": 1, "n_head": 1}
    config = at("architecture", architecture=small | architecture | {"model_type": model_type})
    loads_or_is_refused(
        lambda config: empty_model(load_architecture(config), "AutoModelForCausalLM"), config
    )


@GARBAGE
@given(
    name=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
    content=st.one_of(st.binary(max_size=60), values.map(lambda value: json.dumps(value).encode())),
)
def test_any_tokenizer_file(
    model_copy: Path, proper_model: Path, name: str, content: bytes
) -> None:
    (model_copy / name).write_bytes(content)
    loads_or_is_refused(load_tokenizer, at(model_copy))
    shutil.copy(proper_model / name, model_copy / name)


# --- by kind ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['{"a": ' * 10**5, "[" * 10**5, "9" * 10**5, '{"model_type": "gpt2"']
)
def test_a_config_file_of_any_depth(model_copy: Path, text: str) -> None:
    (model_copy / "config.json").write_text(text)
    for load in (load_model, load_architecture):
        assert str(model_copy) in sentence_of(load, at(model_copy))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_a_pipe_in_place_of_a_file_hangs_nothing(
    model_copy: Path, name: str, make: Callable[[Path], None]
) -> None:
    (model_copy / name).unlink()
    make(model_copy / name)
    for load in (load_model, load_tokenizer):
        assert f"{model_copy / name} is no ordinary file" in sentence_of(load, at(model_copy))


@pytest.mark.parametrize(
    "place", ["{}/loop", "{}/a\0b", "{}/" + "x" * 5000, "~no_such_user/model", "/dev/null"]
)
@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_architecture])
def test_a_place_that_is_none(tmp_path: Path, load: Callable[..., Any], place: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    config = at(place.format(tmp_path))
    with pytest.raises(InputError, match=r"model\.name_or_path"):
        load(config)


def test_a_model_that_the_files_cannot_hold_is_refused_before_it_is_made(model_copy: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    config |= {"vocab_size": 10**9, "n_embd": 2**12}
    (model_copy / "config.json").write_text(json.dumps(config))
    assert "asks for 4,0" in sentence_of(load_model, at(model_copy))


def changed_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = directory / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(file).items()}
    change(weights)
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    """An untied head, which would be a random one."""
    shape = {"vocab_size": 61, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=False)).save_pretrained(tmp_path)
    changed_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    assert "lacks weights that its model needs: lm_head.weight." in sentence_of(
        load_model, at(tmp_path)
    )
    changed_weights(tmp_path, dict.clear)
    assert " and " in sentence_of(load_model, at(tmp_path))


def test_weights_of_another_shape_are_refused_by_name(model_copy: Path) -> None:
    changed_weights(
        model_copy, lambda weights: weights.update({"transformer.ln_f.weight": torch.ones(3)})
    )
    assert "has other shapes of weights that its model needs: transformer.ln_f" in sentence_of(
        load_model, at(model_copy)
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused_by_name(
    model_copy: Path, number: float, dtype: str
) -> None:
    changed_weights(model_copy, lambda weights: weights["transformer.wpe.weight"][3].fill_(number))
    sentence = sentence_of(load_model, at(model_copy, dtype=dtype))
    assert "not finite in weights that its model needs: transformer.wpe.weight." in sentence


def test_large_weights_whose_sum_overflows_are_taken(model_copy: Path) -> None:
    changed_weights(model_copy, lambda weights: weights["transformer.wpe.weight"].fill_(1e37))
    load_model(at(model_copy))


def test_a_classifier_alone_may_be_new(model_copy: Path) -> None:
    new = {"auto_class": "AutoModelForSequenceClassification", "new_head": True, "pad_token_id": 0}
    model = load_model(at(model_copy), **new, id2label={0: "a", 1: "b", 2: "c"})
    assert isinstance(model, GPT2ForSequenceClassification)
    assert model.score.weight.shape == (3, 4)
    changed_weights(model_copy, lambda weights: weights.pop("transformer.ln_f.weight"))
    assert "transformer.ln_f.weight" in sentence_of(load_model, at(model_copy), **new)


def test_an_encoder_is_no_causal_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertForMaskedLM(shape).save_pretrained(tmp_path)
    sentence = sentence_of(load_model, at(tmp_path))
    assert "BertLMHeadModel, which sees the tokens that it is to predict" in sentence
    load_model(at(tmp_path), auto_class="AutoModelForMaskedLM")


def test_a_pickle_alone_is_refused(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    torch.save({}, model_copy / "pytorch_model.bin")
    assert "its weights are a pickle" in sentence_of(load_model, at(model_copy))


def test_an_adapter_is_no_model(model_copy: Path) -> None:
    (model_copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "holds an adapter" in sentence_of(load_model, at(model_copy))


def test_a_tokenizer_without_its_files_is_refused(model_copy: Path) -> None:
    for file in model_copy.glob("tokenizer*"):
        file.unlink()
    assert "no vocabulary" in sentence_of(load_tokenizer, at(model_copy))


def test_names_as_people_have_them(
    small_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(small_directory, tmp_path / "my mödel's = 1")
    assert load_model(at("~/my mödel's = 1")).config.n_embd == 16


def test_the_bundled_tokenizer_has_a_vocabulary() -> None:
    proper = AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])
    assert len(load_tokenizer(at("qpa_exp/tiny"))) == len(proper)


@pytest.mark.parametrize(
    "given",
    [
        *(f"{size}={n}" for size in ("vocab_size", "n_embd", "n_layer", "n_positions")
          for n in ("-1", "0", "1000000000000", "[1,2]", "abc")),
        *(f"model_type={kind}" for kind in ("nope", "[a,b]", "7", "null", "''")),
    ],
)  # fmt: skip
def test_an_architecture_that_is_none_has_no_plan(
    refusal: Callable[..., str], tmp_path: Path, given: str
) -> None:
    assert "rchitecture" in refusal(
        plan.main, ["model=tiny", f"model.architecture.{given}"], tmp_path
    )
