"""What leaves: a plain PEFT adapter, a merged language model, or the compact generator."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpa_exp.adapters.adapted import AdaptedModel, save_adapter
from qpa_exp.adapters.catalogue import pefts_types
from qpa_exp.adapters.peft_model import build_for_sizes, trainable_tensors, whole_modules
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, first_line
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS, check_generator
from qpa_exp.registry import Registry

WEIGHTS, CONFIG, WHOLE = "generator.safetensors", "qpa_config.json", "modules.safetensors"
_FORMAT, _LOWEST_FIRST = 1, 2
"""The files' formats: of a variant that reads the bits lowest first, 1 read them otherwise."""


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
        if saved != given and _is_hub_id(saved) and _is_hub_id(given):
            raise InputError(
                f"{self.directory} was saved for the language model {saved}, not for {given}."
            )
        config = copy.deepcopy(self.peft_config)
        built = build_for_sizes(lambda: type(model)(model.config), config)
        here = {
            name: list(p.shape) for name, p in (*trainable_tensors(built), *whole_modules(built))
        }
        there = self.shapes | {name: list(tensor.shape) for name, tensor in self.whole.items()}
        for name in [*there, *here]:
            if here.get(name) != there.get(name):
                raise InputError(
                    f"{self.directory} was saved for another language model: {name} has shape "
                    f"{there.get(name)} there and {here.get(name)} here."
                )

    def load_into(self, generator: Generator, whole: dict[str, nn.Parameter]) -> None:
        """Set the weights; the generator's start must be the one that was saved with them."""
        generator.load_state_dict(self.weights)
        with torch.no_grad():
            for name, parameter in whole.items():
                parameter.copy_(self.whole[name])
        if not math.isclose(generator.start_norm(), self.start_norm, rel_tol=1e-4):
            raise InputError(
                f"{self.directory}: the start rebuilt from seed {self.qpa_config.seed} has norm "
                f"{generator.start_norm():.6g}, not the {self.start_norm:.6g} that was saved: "
                "this version of torch draws other numbers."
            )


def save(
    directory: str | Path,
    generator: Generator,
    peft_config: PeftConfig,
    shapes: dict[str, list[int]],
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files; ``directory`` is made where it does not exist."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for file, named in ((WEIGHTS, dict(generator.named_parameters())), (WHOLE, whole or {})):
        weights = {name: p.detach().cpu().contiguous() for name, p in named.items()}
        if weights:
            save_file(weights, target / file, metadata={"format": "pt"})
        else:
            (target / file).unlink(missing_ok=True)
    record = {
        "format": _format(generator.config),
        "qpa_config": {k: _plain(v) for k, v in dataclasses.asdict(generator.config).items()},
        "peft_config": _peft_dict(peft_config),
        "shapes": shapes,
        "start_norm": generator.start_norm(),
    }
    (target / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _format(config: QPAConfig) -> int:
    return _LOWEST_FIRST if VARIANTS[config.variant].lowest_first else _FORMAT


def read(directory: str | Path) -> SavedGenerator:
    """Read the files. Nothing that they name is imported or run.

    Raises:
        InputError: a file is missing, cut short or not what it should be.
    """
    source = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise InputError(f"{source} is not a saved QPA model: it has no {name}.")
    try:
        saved = _read_config(source)
    except (ValueError, LookupError, TypeError, AttributeError, OmegaConfBaseException) as error:
        raise InputError(f"{source / CONFIG} is not a QPA config: {first_line(error)}") from error
    weights, whole = _load(source / WEIGHTS), {}
    if {name: w.shape for name, w in weights.items()} != _expected_shapes(saved):
        raise InputError(f"{source / WEIGHTS} does not fit its own {CONFIG}.")
    if (source / WHOLE).is_file():
        whole = _load(source / WHOLE)
    return dataclasses.replace(saved, weights=weights, whole=whole)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short: {error}.") from error


def _read_config(source: Path) -> SavedGenerator:
    record = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    merged = OmegaConf.merge(OmegaConf.structured(QPAConfig), record["qpa_config"])
    qpa_config: Any = OmegaConf.to_object(merged)
    check_generator(qpa_config, saved=True)
    if record["format"] != _format(qpa_config):
        read = _format(qpa_config)
        raise ValueError(f"its format is {record['format']}, this version reads {read}")
    if not VARIANTS[qpa_config.variant].generates:
        raise ValueError(f"qpa={qpa_config.variant} has no generator")
    shapes = {str(name): [int(n) for n in shape] for name, shape in record["shapes"].items()}
    peft_config = PeftConfig.from_peft_type(**record["peft_config"])
    targets = getattr(peft_config, "target_modules", None)
    if not isinstance(targets, str | list | set | None):
        raise TypeError(f"its target_modules are {targets}")
    return SavedGenerator(
        source, qpa_config, peft_config, shapes, float(record["start_norm"]), weights={}, whole={}
    )


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _expected_shapes(saved: SavedGenerator) -> dict[str, torch.Size]:
    """The shapes of the generator's weights; it is built without storage to read them off."""
    m = sum(math.prod(shape) for shape in saved.shapes.values())
    with torch.device("meta"):
        generator = Generator(m, saved.qpa_config)
    return {name: p.shape for name, p in generator.named_parameters()}


def _peft_dict(config: PeftConfig) -> dict[str, Any]:
    """PEFT's config as plain JSON, without the class names that its own loader would look up."""
    record = {key: _plain(value) for key, value in config.to_dict().items() if value is not None}
    for name in ("auto_mapping", "inference_mode", "runtime_config"):
        record.pop(name, None)
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value


def export(
    model: AdaptedModel, out: Path, form: str, base: str, card: str, *, overwrite: bool = False
) -> None:
    """Write the trained model to ``out``, whole or not at all.

    Args:
        model: the trained model; it must not be used after ``merged``.
        out: the directory to make.
        form: what to write: a name of :data:`FORMATS`.
        base: the name under which others find the language model.
        card: the text of the model card, its ``README.md``.
        overwrite: replace ``out`` where it exists.

    Raises:
        InputError: no such form, ``out`` exists, or the method cannot be written in this form.
    """
    written = FORMATS[form]
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: give another out=<directory>, or overwrite=true.")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        written.write(model, part)
        _name_base_model(part, base)
        (part / "README.md").write_text(card, encoding="utf-8")
        if out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_generator(model: AdaptedModel, out: Path) -> None:
    if model.generator is None:
        raise InputError("This run has no generator (qpa=off): give format=peft or format=merged.")
    model.save_pretrained(out)


def _write_adapter(model: AdaptedModel, out: Path) -> None:
    plain = model.to_peft()
    if not _is_pefts_own(plain):
        raise InputError(f"Nothing of {_method(plain)} is a type that PEFT has: give format=qpa.")
    save_adapter(plain, out)


def _write_merged(model: AdaptedModel, out: Path) -> None:
    plain = model.to_peft()
    if not _is_pefts_own(plain):
        raise InputError(
            f"Nothing of {_method(plain)} can be merged into a weight: give format=qpa."
        )
    _require_unquantized(plain)
    _untie_adapted_head(plain)
    try:
        merged = plain.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"{_method(plain)} cannot be merged into the weights: give format=peft."
        ) from error
    merged.save_pretrained(out)


@dataclass(frozen=True)
class Format:
    """One form that a trained model may leave in.

    Attributes:
        library: the library that loads it, as the hub names it.
        use: Python that loads it; ``{base}`` stands for the language model, ``{auto}`` for
            transformers' class of it.
        write: writes the files.
        complete: whether it is the whole language model, so that its tokenizer belongs to it.
    """

    library: str
    use: str
    write: Callable[[AdaptedModel, Path], None]
    complete: bool = False


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
        ),
    },
)
"""HF PEFT's own files, a plain model, or the generator."""


def _method(model: PeftModel) -> str:
    return str(getattr(kind := model.active_peft_config.peft_type, "value", kind)).lower()


def _is_pefts_own(model: PeftModel) -> bool:
    """Our own methods are layers of this package, which nothing else can read."""
    return _method(model) in pefts_types()


def _require_unquantized(model: PeftModel) -> None:
    """Merged into 8 or 4 bits, an update would be rounded to the steps of its weight."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is not None and not weight.is_floating_point():
                raise InputError(
                    f"{name} is quantized, and merging would round the adapter away: "
                    "give format=peft."
                )


def _untie_adapted_head(model: PeftModel) -> None:
    """Give an adapted lm_head a weight of its own, or merging would change the embedding too."""
    language_model: Any = model.get_base_model()
    embedding = language_model.get_input_embeddings()
    base = getattr(language_model.get_output_embeddings(), "base_layer", None)
    if base is not None and base.weight is embedding.weight:
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        language_model.config.tie_word_embeddings = False


def _name_base_model(out: Path, base: str) -> None:
    """PEFT names the directory that the model was loaded from: it means nothing elsewhere."""
    path = out / "adapter_config.json"
    if not path.exists():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    record["base_model_name_or_path"] = base
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
