"""Language models and their tokenizers: the bundled one, a directory, or the hub."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
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

BUNDLED = {"qpa_exp/tiny": Path(__file__).resolve().parent / "tiny"}
"""Names that stand for a model inside this package."""


def load_model(
    config: ModelConfig, auto_class: str = "AutoModelForCausalLM", **more: Any
) -> PreTrainedModel:
    """The frozen language model, in evaluation mode, on the CPU.

    Args:
        config: which one.
        auto_class: transformers' class that loads it.
        more: what its ``from_pretrained`` takes besides.

    Raises:
        InputError: no such directory, a hub that cannot be reached, files that are no causal
            language model, or a quantization whose package is not installed.
    """
    options = {"dtype": getattr(torch, config.dtype)} | _quantization(config) | more
    model = _load(getattr(transformers, auto_class), config, **options)
    return model.requires_grad_(False).eval()


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """What ``from_pretrained`` takes to quantize while it loads."""
    kind = config.quantization
    if kind == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantization={kind} needs bitsandbytes: "
            "pip install 'qpa-exp[quantization]', or give model.quantization=none."
        )
    computing = getattr(torch, config.dtype)
    how = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": computing,
        },
    }
    return {"quantization_config": BitsAndBytesConfig(**how[kind]), "device_map": "cpu"}


def loaded_revision(model: Any) -> str | None:
    """The commit on the hub that the weights came from; None for a directory."""
    return getattr(model.config, "_commit_hash", None)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        InputError: as :func:`load_model`.
    """
    return _load(AutoTokenizer, config)


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's shapes, without its weights: from conf/ where it names them.

    Raises:
        InputError: as :func:`load_model`.
    """
    if config.architecture is not None:
        arguments = dict(config.architecture)
        return AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    return _load(AutoConfig, config)


def n_positions(architecture: PretrainedConfig) -> int | None:
    """The longest sequence that the model takes; None where it has no such limit."""
    text = architecture.get_text_config()
    for name in ("n_positions", "max_position_embeddings"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _load(loader: Any, config: ModelConfig, **options: Any) -> Any:
    """``from_pretrained``, never running code that came with a model."""
    source = _source(config.name_or_path)
    revision = None if isinstance(source, Path) else config.revision
    _quiet()
    try:
        return loader.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False, **options
        )
    except Exception as error:  # transformers, the hub client and parsers raise all sorts
        raise InputError(_explain(source, error)) from error


def _source(name_or_path: str) -> Path | str:
    if name_or_path in BUNDLED:
        return BUNDLED[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise InputError(
            f"model.name_or_path={name_or_path} is not a directory: "
            "give one that holds a model in the hub's format, or a hub id."
        )
    return name_or_path


def _explain(source: Path | str, error: Exception) -> str:
    if isinstance(source, Path):
        reason = one_line(error)[:300]
        return f"{source} does not hold a model that transformers can load: {reason}"
    return (
        f"{source} could not be had from the model hub ({type(error).__name__}): give "
        "model.name_or_path=<directory with the model's files>, or model=tiny, "
        "which needs no download."
    )


def _quiet() -> None:
    """The libraries' advice on loading is for people who call them themselves."""
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    disable_progress_bar()
