"""The files of a saved generator, read and checked."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpa_exp.adapters.generated import saved_config
from qpa_exp.adapters.peft_model import (
    build_for_sizes,
    peft_config_of,
    trainable_tensors,
    whole_modules,
)
from qpa_exp.adapters.saved_method import (
    CONFIG,
    OLD_WEIGHTS,
    OLD_WHOLE,
    WEIGHTS,
    load_weights,
    same_shapes,
)
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, first_line
from qpa_exp.files import MIB, read_plain, typed
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS, count_generator
from qpa_exp.machine import free_memory

T = TypeVar("T")


@dataclass(frozen=True)
class SavedGenerator:
    """What a directory holds, read and checked, before any model is built from it."""

    directory: Path
    qpa_config: QPAConfig
    peft_config: PeftConfig
    shapes: dict[str, list[int]]
    start_norm: float
    weights: dict[str, Tensor]
    whole: dict[str, Tensor]

    def check_base(self, model: PreTrainedModel) -> None:
        """Refuse a language model that is not the one that was saved for; it is left as it is.

        Two ids on the hub must be the same. A directory may lie elsewhere and have any name; of
        every model the method's tensors must have the shapes of those that were generated.
        """
        saved, given = (
            str(name or "")
            for name in (self.peft_config.base_model_name_or_path, model.name_or_path)
        )
        if saved != given and is_hub_id(saved) and is_hub_id(given):
            raise InputError(
                f"{self.directory} was saved for the language model {saved}, not for {given}."
            )
        config = copy.deepcopy(self.peft_config)
        built = build_for_sizes(lambda: type(model)(model.config), config, saved=True)
        tensors, whole = dict(trainable_tensors(built)), dict(whole_modules(built))
        here = {name: list(p.shape) for name, p in (tensors | peft_names(whole)).items()}
        there = self.shapes | {name: list(tensor.shape) for name, tensor in self.whole.items()}
        for name in [*there, *here]:
            if here.get(name) != there.get(name):
                raise InputError(
                    f"{self.directory} was saved for another language model: {name} has shape "
                    f"{there.get(name)} there and {here.get(name)} here."
                )

    def load_into(self, generator: Generator, whole: dict[str, nn.Parameter]) -> None:
        """Set the weights of a generator, and of the modules that are trained whole."""
        generator.load_state_dict(self.weights)
        with torch.no_grad():
            for name, parameter in peft_names(whole).items():
                parameter.copy_(self.whole[name])


def peft_names(whole: Mapping[str, T]) -> dict[str, T]:
    """Tensors of modules that are trained whole, by the names that PEFT writes them under."""
    return {name.replace(".modules_to_save.default", ""): p for name, p in whole.items()}


def local_copy(model_id: str | Path, subfolder: str | None, **hub: Any) -> Path:
    """Give the directory of a saved generator: one of this machine, or a copy of what the hub has.

    Args:
        model_id: a directory, or an id of the hub: ``owner/name``.
        subfolder: of either, where the generator lies in one.
        hub: what ``huggingface_hub.snapshot_download`` takes.

    Raises:
        InputError: the hub has no such repository, or cannot be reached.
    """
    place = Path(model_id)
    if "/" in str(model_id) and is_hub_id(str(model_id)) and not os.path.exists(place.parent):  # noqa: PTH110
        from huggingface_hub import snapshot_download

        inside = f"{subfolder}/" if subfolder else ""
        names = (CONFIG, CONFIG_NAME, WEIGHTS, OLD_WEIGHTS, OLD_WHOLE)
        try:
            place = Path(
                snapshot_download(str(model_id), allow_patterns=[inside + n for n in names], **hub)
            )
        except (OSError, ValueError) as error:  # the hub's own errors are among them
            raise InputError(
                f"{model_id} is no directory here, and cannot be had from the hub: "
                f"{first_line(error)[:300]}"
            ) from error
    return place / subfolder if subfolder else place


def read(directory: str | Path) -> SavedGenerator:
    """Read the files. Nothing that they name is imported or run.

    Raises:
        InputError: a file is missing, cut short or not what it should be.
    """
    source = Path(directory)
    old = not os.path.isfile(source / WEIGHTS) and os.path.isfile(source / OLD_WEIGHTS)  # noqa: PTH113
    file = source / (OLD_WEIGHTS if old else WEIGHTS)
    config = CONFIG if os.path.isfile(source / CONFIG) else CONFIG_NAME  # noqa: PTH113
    for name in (config, file.name):
        if not os.path.isfile(source / name):  # noqa: PTH113  (of a name too long this is false)
            raise InputError(f"{str(source)[:200]} is not a saved QPA model: it has no {name}.")
    record = read_plain(source / config, 16 * MIB)
    try:
        saved, named = _parsed(source, record if config == CONFIG else _of_peft(record))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = first_line(error)[:300].rstrip(".")
        raise InputError(f"{source / config} is not a QPA config: {why}.") from error
    weights = load_weights(file)
    # A directory that is saved to again may hold the file of what was there before.
    if old and (named or (named is None and (source / OLD_WHOLE).is_file())):
        weights |= load_weights(source / OLD_WHOLE)
    whole = {name: weight for name, weight in weights.items() if name.startswith("base_model.")}
    own = {name: weight for name, weight in weights.items() if name not in whole}
    if sorted(whole) != (sorted(whole) if named is None else sorted(named)) or not _fit(own, saved):
        raise InputError(f"{file} does not fit its own {config}.")
    return dataclasses.replace(saved, weights=own, whole=peft_names(whole))


def _of_peft(record: dict[str, Any]) -> dict[str, Any]:
    """Our record from the config that PEFT writes of a model that it built itself."""
    given = dict(record)
    qpa, generated = given.pop("qpa"), given.pop("generated")
    given["peft_type"] = str(given["peft_type"]).removeprefix("QPA_")
    for name in ("inference_mode", "auto_mapping"):  # PEFT's own, of how it was built and saved
        given.pop(name, None)
    reads = VARIANTS[saved_config(qpa).variant].saved_format
    return {"format": reads, "qpa_config": qpa, "peft_config": given, **generated}


@dataclass
class _Record:
    """The keys of the config file, and their types."""

    format: int
    qpa_config: dict[str, Any]
    peft_config: dict[str, Any]
    shapes: dict[str, list[int]]
    start_norm: float
    whole: list[str] | None = None


def _parsed(source: Path, record: Any) -> tuple[SavedGenerator, list[str] | None]:
    """Return what the config file says, and the names of the weights that are trained whole.

    None where it does not say: earlier versions, and PEFT, do not.
    """
    given = typed(_Record, record)
    qpa_config = saved_config(given.qpa_config)
    if given.format != (reads := VARIANTS[qpa_config.variant].saved_format):
        raise ValueError(f"its format is {given.format}, this version reads {reads}")
    if not VARIANTS[qpa_config.variant].generates:
        raise ValueError(f"qpa={qpa_config.variant} has no generator")
    if not re.fullmatch(r"\w+", qpa_config.device):
        raise ValueError(f"device is {qpa_config.device}, which is no name of a device")
    m = sum(math.prod(shape) for shape in given.shapes.values())
    if min((n for shape in given.shapes.values() for n in shape), default=0) < 1:
        raise ValueError("its shapes have sides that are not positive")
    if 4 * m > free_memory():
        raise ValueError(f"it generates {m:,} numbers, more than there is memory for")
    peft_config, norm = peft_config_of(given.peft_config), float(given.start_norm)
    saved = SavedGenerator(source, qpa_config, peft_config, given.shapes, norm, {}, {})
    return saved, given.whole


def is_hub_id(name: str) -> bool:
    """Whether this may name a model of the hub: it has that form, and is no path here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not os.path.exists(name)  # noqa: PTH110


def _fit(weights: Mapping[str, Tensor], saved: SavedGenerator) -> bool:
    """Whether the weights are those of the generator, which is built without storage to tell.

    It is not built where their number is another: a few bytes may describe a vast one.
    """
    m = sum(math.prod(shape) for shape in saved.shapes.values())
    n_trained = sum(weight.numel() for weight in weights.values())
    if count_generator(m, saved.qpa_config).trainable_params != n_trained:
        return False
    with torch.device("meta"):
        generator = Generator(m, saved.qpa_config)
    return same_shapes(dict(generator.named_parameters()), weights)
