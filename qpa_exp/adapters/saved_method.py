"""PEFT's config of a method, and its tensors, from files that somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qpa_exp.adapters.peft_model import peft_config_of
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import check_directory, read_plain
from qpa_exp.files.whole_directory import part_of

WEIGHTS, CONFIG = SAFETENSORS_WEIGHTS_NAME, "qpa_config.json"
OLD_WEIGHTS, OLD_WHOLE = "generator.safetensors", "modules.safetensors"
"""Files of earlier versions: the generator's weights, and those of modules trained whole."""


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        InputError: it is missing, damaged or cut short, or a number in it is not finite.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or cut short: {one_line(error)[:200]}.") from error
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise InputError(f"{path}: {name[:100]} holds a number that is not finite.")
    return weights


def read_adapter(source: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return a saved adapter's config and tensors; nothing that they name is imported or run.

    Raises:
        InputError: it is missing or damaged.
    """
    if not (source / CONFIG_NAME).is_file():
        raise InputError(f"{source} is missing: the run's trained adapter is not there.")
    record = read_plain(source / CONFIG_NAME)
    try:
        config = peft_config_of(record)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        why = one_line(error)[:300].rstrip(".")
        raise InputError(f"{source / CONFIG_NAME} is no method's config: {why}.") from error
    return config, load_weights(source / SAFETENSORS_WEIGHTS_NAME)


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names and shapes, and types; any two of floating point are."""
    pairs = (
        {name: (w.shape, w.is_floating_point() or w.dtype) for name, w in each.items()}
        for each in (one, other)
    )
    return next(pairs) == next(pairs)


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Write an adapter in PEFT's format, and nothing of the language model."""
    check_directory(directory)
    place = Path(directory)
    with part_of(place / "adapter") as part:
        # PEFT would add a copy of the embedding to an adapter on lm_head: it is not trained.
        model.save_pretrained(str(part), save_embedding_layers=False)
        for file in sorted(part.glob("adapter_*"), reverse=True):
            file.replace(place / file.name)
