"""Models from a directory, the package or the hub, and what is refused or never run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from qpa_exp.cli import compose_config
from qpa_exp.config import ModelConfig
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import BUNDLED, load_architecture, load_model, load_tokenizer, n_positions
from qpa_exp.runs.train import build

LOADERS = [load_model, load_tokenizer, load_architecture]


def at(place: object, **fields: object) -> ModelConfig:
    return ModelConfig(name="hf", name_or_path=str(place), **fields)


def refusal(load, config: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        load(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- what loads -------------------------------------------------------------------------------


def test_a_directory_in_the_hubs_format_loads_frozen_and_in_evaluation_mode(small_directory):
    model = load_model(at(small_directory))
    assert isinstance(model, GPT2LMHeadModel)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_loaded_directory_has_the_weights_that_were_saved(small_directory, make_gpt2, batch):
    ids = batch["input_ids"]
    assert torch.equal(load_model(at(small_directory))(ids).logits, make_gpt2()(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_of_the_type_that_is_asked_for(small_directory, dtype):
    assert load_model(at(small_directory, dtype=dtype)).dtype == getattr(torch, dtype)


def test_the_tokenizer_of_a_directory_loads(small_directory):
    assert load_tokenizer(at(small_directory))("w3 w60").input_ids == [3, 60]


def test_the_shapes_of_a_directory_are_read_from_its_config(small_directory):
    architecture = load_architecture(at(small_directory))
    assert (architecture.vocab_size, architecture.n_embd) == (61, 16)


def test_shapes_that_the_config_names_need_no_files_at_all():
    named = {"model_type": "gpt2", "vocab_size": 7, "n_embd": 4}
    architecture = load_architecture(at("nobody/nothing", architecture=named))
    assert (architecture.vocab_size, architecture.n_embd) == (7, 4)
    assert named == {"model_type": "gpt2", "vocab_size": 7, "n_embd": 4}


@pytest.mark.skipif(
    not (BUNDLED["qpa_exp/tiny"] / "model.safetensors").is_file(), reason="no bundled model"
)
def test_the_bundled_model_loads_by_its_name_without_network():
    config = ModelConfig(name="tiny", name_or_path="qpa_exp/tiny")
    model, tokenizer = load_model(config), load_tokenizer(config)
    assert model.get_output_embeddings().weight.shape == (16384, 128)
    assert len(tokenizer) == model.config.vocab_size


# --- what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["/no/such/place", "./nowhere", "a/b/c", "~/no_such_model"])
def test_a_directory_that_is_not_there_is_named(load, name):
    assert f"model.name_or_path={name} is not a directory" in refusal(load, at(name))


@pytest.mark.parametrize("load", LOADERS)
def test_a_directory_that_holds_no_model_is_named(load, tmp_path):
    assert f"{tmp_path} does not hold a model" in refusal(load, at(tmp_path))


@pytest.mark.parametrize("load", [load_model, load_architecture])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "no_such_architecture"}'])
def test_a_config_file_that_is_none_is_refused(load, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path) in refusal(load, at(tmp_path))


def test_weights_that_are_cut_short_are_refused(small_directory, tmp_path):
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert str(copy) in refusal(load_model, at(copy))


def test_a_model_that_writes_no_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert str(tmp_path) in refusal(load_model, at(tmp_path))


@pytest.mark.parametrize("load", LOADERS)
def test_a_hub_out_of_reach_leads_to_a_directory_or_the_bundled_model(load):
    sentence = refusal(load, at("nobody-at-all/no-such-model"))
    assert "nobody-at-all/no-such-model" in sentence
    assert "model.name_or_path=<directory" in sentence
    assert "model=tiny" in sentence


# --- what must never run ----------------------------------------------------------------------


class WritesAMarker:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def with_code(directory: Path, marker: Path, model_type: str) -> Path:
    """Let every file of the directory ask for the classes of a module that writes a marker."""
    body = "\n".join(f"class {name}: ..." for name in ("Config", "Model", "Tokenizer"))
    (directory / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n{body}\n")
    classes = {
        "config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]},
    }
    for name, auto_map in classes.items():
        record = json.loads((directory / name).read_text()) | {"auto_map": auto_map}
        if name == "config.json":
            record["model_type"] = model_type
        (directory / name).write_text(json.dumps(record))
    return directory


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("model_type", ["gpt2", "evil"])
def test_code_that_came_with_a_model_is_never_run(load, model_type, small_directory, tmp_path):
    marker = tmp_path / "marker"
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    with contextlib.suppress(InputError):
        load(at(with_code(copy, marker, model_type)))
    assert not marker.exists()


def test_a_pickle_in_place_of_weights_is_never_run(small_directory, tmp_path):
    marker = tmp_path / "marker"
    copy = shutil.copytree(small_directory, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    torch.save({"weight": WritesAMarker(marker)}, copy / "pytorch_model.bin")
    assert str(copy) in refusal(load_model, at(copy))
    assert not marker.exists()


# --- positions --------------------------------------------------------------------------------


def test_the_limit_is_the_models_number_of_positions():
    assert n_positions(GPT2Config(n_positions=77)) == 77


# --- another tokenizer ------------------------------------------------------------------------


def test_another_tokenizer_is_read_from_its_own_place(small_directory, tmp_path) -> None:
    load_tokenizer(at(small_directory)).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(at(small_directory, tokenizer=str(tmp_path)))
    assert tokenizer("w3 w5")["input_ids"] == [3, 5]


def test_another_tokenizer_that_does_not_fit_is_refused(small_directory, tmp_path) -> None:
    found = refusal(load_tokenizer, at(small_directory, tokenizer="qpa_exp/tiny"))
    assert "model.tokenizer=qpa_exp/tiny has tokens up to number 16,383" in found
    missing = refusal(load_tokenizer, at(small_directory, tokenizer=str(tmp_path / "none")))
    assert "model.tokenizer=" in missing
    assert "model.name_or_path" not in missing


# --- a tokenizer with more tokens than the model ----------------------------------------------


@pytest.fixture
def enlarged(small_directory: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``enlarged("[PAD]")``: the small model; its tokenizer has one more token, the model not."""

    def make(added: str) -> Path:
        place = tmp_path / "enlarged"
        shutil.copytree(small_directory, place)
        tokenizer = AutoTokenizer.from_pretrained(place)
        if added == "[PAD]":
            tokenizer.add_special_tokens({"pad_token": added})
        else:
            tokenizer.add_tokens([added])
        tokenizer.save_pretrained(place)
        return place

    return make


TEXT = {"unused": "w1 w2 w3", "used": "w1 w2 <new>"}


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("task", ["causal_lm", "seq_cls"])
def test_a_token_beyond_the_embeddings_is_refused_where_a_text_has_it(
    enlarged: Any, tmp_path: Path, task: str, text: str
) -> None:
    rows = [f"{TEXT[text]} w{i},{'ab'[i % 2]}" for i in range(1, 41)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data = {"causal_lm": "data=text", "seq_cls": "data=labelled"}[task]
    given = [data, f"data.path={tmp_path / 'a.csv'}", "data.layout=lines", "data.max_length=8"]
    config = compose_config([
        f"task={task}", "model=hf", f"model.name_or_path={enlarged('<new>')}",
        "peft.target_modules=[c_attn]", *given,
    ])  # fmt: skip
    if text == "unused":
        build(config, "off")
    else:
        with pytest.raises(InputError, match=r"Token <new> is number 61, .* the model knows 61"):
            build(config, "off")


def test_a_padding_token_beyond_the_embeddings_is_refused(enlarged: Any, tmp_path: Path) -> None:
    rows = [f"w1 w2,{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = compose_config([
        "task=seq_cls", "model=hf", f"model.name_or_path={enlarged('[PAD]')}", "data=labelled",
        "peft.target_modules=[c_attn]", f"data.path={tmp_path / 'a.csv'}", "data.max_length=2",
    ])  # fmt: skip
    with pytest.raises(InputError, match=r"Token \[PAD\] is number 61, .*resize its embeddings"):
        build(config, "off")
