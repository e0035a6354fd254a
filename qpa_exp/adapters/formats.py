"""What leaves: a plain PEFT adapter, a merged language model, or the compact generator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from qpa_exp.adapters.adapted import AdaptedModel, save_adapter
from qpa_exp.adapters.catalogue import pefts_types
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry


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
