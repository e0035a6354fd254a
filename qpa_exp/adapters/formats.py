"""What is exported: a plain PEFT adapter, a merged language model, or the compact generator."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpa_exp.adapters.catalogue import METHODS, pefts_types
from qpa_exp.adapters.generated import merged, method_name, saved_config
from qpa_exp.adapters.peft_model import build_for_sizes, trainable_tensors, whole_modules
from qpa_exp.adapters.saved_method import (
    CONFIG,
    OLD_WEIGHTS,
    OLD_WHOLE,
    WEIGHTS,
    load_weights,
    peft_config_of,
    same_shapes,
    save_adapter,
)
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, first_line, one_line
from qpa_exp.files import MIB, read_plain, typed, write_text
from qpa_exp.files.whole_directory import whole_directory
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS, count_generator
from qpa_exp.machine import free_memory
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from qpa_exp.adapters.qpa_model import AdaptedModel

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
        built = build_for_sizes(lambda: type(model)(model.config), config)
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
    config = CONFIG if os.path.isfile(source / CONFIG) else CONFIG_NAME  # noqa: PTH113
    for name in (config, OLD_WEIGHTS if old else WEIGHTS):
        if not os.path.isfile(source / name):  # noqa: PTH113  (of a name too long this is false)
            raise InputError(f"{str(source)[:200]} is not a saved QPA model: it has no {name}.")
    record = read_plain(source / config, 16 * MIB)
    try:
        saved, named = _parsed(source, record if config == CONFIG else _of_peft(record))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = first_line(error)[:300].rstrip(".")
        raise InputError(f"{source / config} is not a QPA config: {why}.") from error
    weights = load_weights(source / (OLD_WEIGHTS if old else WEIGHTS))
    # A directory that is saved to again may hold the file of what was there before.
    if old and (named or (named is None and (source / OLD_WHOLE).is_file())):
        weights |= load_weights(source / OLD_WHOLE)
    whole = {name: weight for name, weight in weights.items() if name.startswith("base_model.")}
    own = {name: weight for name, weight in weights.items() if name not in whole}
    if sorted(whole) != (sorted(whole) if named is None else sorted(named)) or not _fit(own, saved):
        raise InputError(
            f"{source / (OLD_WEIGHTS if old else WEIGHTS)} does not fit its own {config}."
        )
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


def export(
    model: AdaptedModel,
    out: Path,
    form: str,
    base: str | None,
    card: str,
    *,
    base_files: Path | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> None:
    """Write the trained model to ``out``, whole or not at all.

    Args:
        model: the trained model; it must not be used after ``merged``.
        out: the directory to make.
        form: what to write: a name of :data:`FORMATS`.
        base: the name under which others find the language model; None where it has none.
        card: the text of the model card, its ``README.md``.
        base_files: a directory of the language model's files, to lie in :data:`BASE_FILES` beside
            an adapter that no hub has the language model of; None for none.
        tokenizer: of transformers, to lie beside a model that is complete; None for none.
        overwrite: replace ``out`` where it is an export and holds nothing else.

    Raises:
        InputError: no such form, ``out`` cannot be made or replaced, or the method cannot be
            written in this form.
    """
    written = FORMATS[form]
    try:
        with whole_directory(out, overwrite=overwrite) as part:
            written.write(model, part)
            _name_base_model(part, base)
            write_text(part / "README.md", card)
            if base_files is not None:
                shutil.copytree(base_files, part / BASE_FILES)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error)[:200]
        raise InputError(f"{out} cannot be written: {why}.") from error


def _write_generator(model: AdaptedModel, out: Path) -> None:
    if model.generator is None:
        raise InputError("This run has no generator (qpa=off): give format=peft or format=merged.")
    model.save_pretrained(out)


def _write_adapter(model: AdaptedModel, out: Path) -> None:
    save_adapter(_as_pefts(model.to_peft(), "is a type that PEFT has"), out)


def _write_merged(model: AdaptedModel, out: Path) -> None:
    merged(_as_pefts(model.to_peft(), "can be merged into a weight")).save_pretrained(out)


BASE_FILES = "base_model"
"""The directory in an export that holds the language model's own files."""


@dataclass(frozen=True)
class Format:
    """One form that a trained model may leave in.

    Attributes:
        library: the library that loads it, as the hub names it.
        use: Python that loads it; ``{base}`` stands for the language model, as the arguments of
            ``from_pretrained``, and ``{auto}`` for transformers' class of it.
        needs_us: whether it is loaded by this package, which has the bundled model.
        write: writes the files.
        complete: whether it is the whole language model, so that its tokenizer belongs to it.
    """

    library: str
    use: str
    write: Callable[[AdaptedModel, Path], None]
    complete: bool = False
    needs_us: bool = False


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "peft": Format(
            "peft",
            """\
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base})
model = PeftModel.from_pretrained(base, "<this directory>")""",
            _write_adapter,
        ),
        "merged": Format(
            "transformers",
            """\
from transformers import {auto}

model = {auto}.from_pretrained("<this directory>")""",
            _write_merged,
            complete=True,
        ),
        "qpa": Format(
            "peft",
            """\
from qpa_exp import QPAModel
from transformers import {auto}

base = {auto}.from_pretrained({base})
model = QPAModel.from_pretrained(base, "<this directory>")""",
            _write_generator,
            needs_us=True,
        ),
    },
)
"""HF PEFT's own files, a plain model, or the generator."""


def _as_pefts(model: PeftModel, what: str) -> PeftModel:
    """Return the same update as a method that PEFT has: it cannot read the layers of our own.

    Raises:
        InputError: there is none, and so nothing that ``what`` says.
    """
    name = method_name(model).removeprefix("qpa_")
    if name in METHODS.own and (as_pefts := METHODS.own[name].as_pefts) is not None:
        model = as_pefts(model)
    if method_name(model) not in pefts_types():
        raise InputError(f"Nothing of {method_name(model)} {what}: give format=qpa.")
    return model


def adapted_head(model: PeftModel) -> tuple[Any, bool]:
    """Return the output head's own layer where the method adapts it, and whether the embedding
    shares it.

    None where the head is as it was.
    """
    language_model: Any = model.get_base_model()
    base = getattr(language_model.get_output_embeddings(), "base_layer", None)
    embedding = language_model.get_input_embeddings()
    return base, base is not None and base.weight is embedding.weight


def _name_base_model(out: Path, base: str | None) -> None:
    """PEFT names the directory that the model was loaded from: it means nothing elsewhere."""
    for path in (out / CONFIG_NAME, out / CONFIG):
        if path.exists():
            whole = json.loads(path.read_text(encoding="utf-8"))
            whole.get("peft_config", whole)["base_model_name_or_path"] = base
            write_text(path, json.dumps(whole, indent=2, sort_keys=True) + "\n")
