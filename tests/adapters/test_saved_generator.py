"""A saved generator: bit for bit, small, and refused in one sentence where it is not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from qpa_exp.adapters import saved_generator as files
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model, save_generator
from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator

VARIANTS = ["paper", "released", "tuned"]
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}


@pytest.fixture
def make_trained(make_gpt2, qpa_config, batch):
    """``make_trained("tuned")``: a generated LoRA after three steps, in evaluation mode."""

    def make(variant: str, **lora: Any) -> QPAModel:
        config = qpa_config(variant, n_mlp=16)
        model = get_qpa_model(make_gpt2(), LoraConfig(**LORA | lora), config).train()
        optimizer = torch.optim.AdamW(model.generator.parameters(), lr=1e-2)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        return model.eval()

    return make


@pytest.fixture
def saved(make_trained, tmp_path) -> Path:
    make_trained("tuned").save_pretrained(tmp_path)
    return tmp_path


def refusal(directory: Path, base: GPT2LMHeadModel) -> str:
    with pytest.raises(InputError) as caught:
        QPAModel.from_pretrained(base, directory)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def tamper(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the config file with one change."""
    path = directory / files.CONFIG
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("load", [QPAModel.from_pretrained, PeftModel.from_pretrained])
def test_all_linear_layers_may_be_narrower_than_the_rank(
    make_trained, make_gpt2, batch, tmp_path, load
):
    model = make_trained("tuned", r=20, target_modules="all-linear")  # 16 wide
    model.save_pretrained(tmp_path)
    assert torch.equal(load(make_gpt2(), tmp_path)(**batch).logits, model(**batch).logits)


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lora", [{}, {"target_modules": ["lm_head", "c_attn"], "r": 3}])
def test_a_model_comes_back_bit_for_bit(make_trained, make_gpt2, batch, tmp_path, variant, lora):
    model = make_trained(variant, **lora)
    model.save_pretrained(tmp_path)
    again = QPAModel.from_pretrained(make_gpt2(), tmp_path)
    ours, theirs = model.generated_tensors(), again.generated_tensors()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.generator.config == model.generator.config


def test_a_loaded_model_is_in_evaluation_mode_as_every_pretrained_model(saved, make_gpt2):
    again = QPAModel.from_pretrained(make_gpt2(), saved)
    assert not any(module.training for module in again.modules())


def test_a_loaded_model_trains_on_as_the_saved_one_would(make_trained, make_gpt2, batch, tmp_path):
    model = make_trained("tuned")
    model.save_pretrained(tmp_path)
    again = QPAModel.from_pretrained(make_gpt2(), tmp_path)
    for either in (model, again):
        either.train().zero_grad()
        either(**batch).loss.backward()
    for ours, theirs in zip(
        model.generator.parameters(), again.generator.parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_methods_own_settings_come_back(make_trained, make_gpt2, tmp_path):
    model = make_trained("tuned", lora_alpha=7, lora_dropout=0.25, use_rslora=True)
    model.save_pretrained(tmp_path)
    again = QPAModel.from_pretrained(make_gpt2(), tmp_path)
    ours, theirs = (m.peft_model.peft_config["default"] for m in (model, again))
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "task_type"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_three_files_hold_the_generators_parameters_alone(make_trained, tmp_path):
    model = make_trained("tuned")
    model.save_pretrained(tmp_path / "new" / "directory")
    written = tmp_path / "new" / "directory"
    names = {files.WEIGHTS, files.CONFIG, files.CONFIG_NAME}
    assert {path.name for path in written.iterdir()} == names
    weights = load_file(written / files.WEIGHTS)
    expected = dict(model.generator.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_saving_again_replaces_what_was_saved(make_trained, saved, make_gpt2, batch):
    model = make_trained("paper")
    model.save_pretrained(saved)
    again = QPAModel.from_pretrained(make_gpt2(), saved)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_generated_lora_of_gpt2_fits_in_250_kilobytes(qpa_config, tmp_path):
    generator = Generator(4 * (50257 + 768), qpa_config("tuned", n_mlp=256))
    shapes = {"lm_head.lora_B": [50257, 4], "lm_head.lora_A": [4, 768]}
    lora, weights = LoraConfig(r=4, target_modules=["lm_head"]), dict(generator.named_parameters())
    save_generator(tmp_path, generator, lora, shapes, weights)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 250_000


# --- what is refused --------------------------------------------------------------------------


def test_files_of_earlier_versions_are_read(make_gpt2, qpa_config, tmp_path):
    """They had two names: one for the generator's weights, one for modules trained whole."""
    lora = LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"])
    get_qpa_model(make_gpt2(), lora, qpa_config("tuned")).save_pretrained(tmp_path)
    (tmp_path / files.CONFIG_NAME).unlink()
    new, weights = files.read(tmp_path), load_file(tmp_path / files.WEIGHTS)
    whole = {name: w for name, w in weights.items() if name.startswith("base_model.")}
    assert whole
    (tmp_path / files.WEIGHTS).unlink()
    save_file({n: w for n, w in weights.items() if n not in whole}, tmp_path / files.OLD_WEIGHTS)
    save_file(whole, tmp_path / files.OLD_WHOLE)
    old = files.read(tmp_path)
    for one, other in ((old.weights, new.weights), (old.whole, new.whole)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    QPAModel.from_pretrained(make_gpt2(), tmp_path)


@pytest.mark.parametrize("names", [(files.WEIGHTS,), (files.CONFIG_NAME, files.CONFIG)])
def test_a_missing_file_is_named(saved, make_gpt2, names):
    for name in names:
        (saved / name).unlink()
    assert f"it has no {names[0]}" in refusal(saved, make_gpt2())


def test_a_missing_directory_is_named(tmp_path, make_gpt2):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere", make_gpt2())


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_are_cut_short_are_refused(saved, make_gpt2, length):
    path = saved / files.WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    assert f"{path} is damaged or cut short" in refusal(saved, make_gpt2())


def test_weights_of_another_generator_are_refused(saved, make_gpt2):
    save_file({"circuit.theta": torch.zeros(8, 1, 4)}, saved / files.WEIGHTS)
    assert f"{saved / files.WEIGHTS} does not fit" in refusal(saved, make_gpt2())


@pytest.mark.parametrize("text", ["", '{"format": 1', "[]", "null", '"text"', "\x00"])
def test_a_config_that_is_no_config_is_refused(saved, make_gpt2, text):
    (saved / files.CONFIG).write_text(text)
    assert str(saved / files.CONFIG) in refusal(saved, make_gpt2())


def test_a_config_that_is_no_text_is_refused(saved, make_gpt2):
    (saved / files.CONFIG).write_bytes(b"\xff\xfe\x00")
    assert str(saved / files.CONFIG) in refusal(saved, make_gpt2())


@pytest.mark.parametrize("key", ["qpa_config", "peft_config", "shapes", "start_norm"])
def test_a_config_without_one_of_its_parts_is_refused(saved, make_gpt2, key):
    tamper(saved, lambda record: record.pop(key))
    assert str(saved / files.CONFIG) in refusal(saved, make_gpt2())


@pytest.mark.parametrize("key", ["qpa_config", "peft_config", "shapes", "start_norm"])
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_part_of_the_wrong_type_is_refused(saved, make_gpt2, key, value):
    tamper(saved, lambda record: record.update({key: value}))
    assert str(saved) in refusal(saved, make_gpt2())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_mlp", 0),
        ("n_mlp", -1),
        ("n_mlp", "abc"),
        ("n_mlp", None),
        ("n_mlp", 32),
        ("n_mlp", 10**12),
        ("n_layers", -1),
        ("n_layers", 3),
        ("n_layers", 10**12),
        ("seed", 1),
        ("seed", "a"),
        ("variant", "off"),
        ("variant", "other"),
        ("feature", "log"),
        ("activation", "swish"),
        ("anchor", False),
        ("no_such_key", 1),
    ],
)
def test_a_generator_other_than_the_saved_one_is_refused(saved, make_gpt2, key, value):
    tamper(saved, lambda record: record["qpa_config"].update({key: value}))
    refusal(saved, make_gpt2())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "OTHER"),
        ("peft_type", None),
        ("task_type", "OTHER"),
        ("target_modules", ["lm_hed"]),
        ("target_modules", []),
        ("target_modules", 3),
        ("r", 3),
        ("r", 0),
        ("r", "text"),
        ("lora_alpha", "text"),
        ("lora_dropout", 7),
        ("init_lora_weights", "other"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_method_other_than_the_saved_one_is_refused(saved, make_gpt2, key, value):
    tamper(saved, lambda record: record["peft_config"].update({key: value}))
    refusal(saved, make_gpt2())


def test_a_format_of_the_future_is_refused(saved, make_gpt2):
    tamper(saved, lambda record: record.update(format=3))
    assert "format" in refusal(saved, make_gpt2())


def test_a_released_generator_whose_bits_were_read_the_other_way_is_refused(saved, make_gpt2):
    def as_it_was(record):
        record["qpa_config"] = {"variant": "released", "basis_order": "random"}

    tamper(saved, as_it_was)
    assert "its format is 1, this version reads 2" in refusal(saved, make_gpt2())


@pytest.mark.filterwarnings("ignore:.*base_model_name_or_path")
def test_another_language_model_is_refused_with_both_shapes(saved):
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    sentence = refusal(saved, other)
    assert "another language model" in sentence
    assert "[61, 2] there" in sentence
    assert "[50, 2] here" in sentence


def test_a_refused_language_model_is_left_as_it_was(saved):
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    before = [name for name, _ in other.named_parameters()]
    refusal(saved, other)
    assert [name for name, _ in other.named_parameters()] == before


def test_a_language_model_of_another_name_on_the_hub_is_refused(saved, make_gpt2):
    record = json.loads((saved / files.CONFIG).read_text())
    record["peft_config"]["base_model_name_or_path"] = "openai-community/gpt2"
    (saved / files.CONFIG).write_text(json.dumps(record))
    model = make_gpt2()
    QPAModel.from_pretrained(model, saved)  # a directory may hold any model, under any name
    model = make_gpt2()
    model.name_or_path = "distilbert/distilgpt2"
    sentence = refusal(saved, model)
    assert "for the language model openai-community/gpt2, not for distilbert/distilgpt2" in sentence


def test_weights_are_read_as_data_only(saved):
    with safe_open(saved / files.WEIGHTS, framework="pt") as stored:
        assert stored.metadata() == {"format": "pt"}
    assert not [path for path in saved.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
