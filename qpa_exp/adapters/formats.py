"""What leaves: a plain PEFT adapter, a merged language model, or the compact generator."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from qpa_exp.adapters.build import Adapted
from qpa_exp.adapters.qpa_model import QPAModel
from qpa_exp.errors import InputError


class Format(StrEnum):
    """``peft``: HF PEFT's own files; ``merged``: a plain model; ``qpa``: the generator."""

    peft = "peft"
    merged = "merged"
    qpa = "qpa"


def export(
    model: Adapted, out: Path, form: Format, base: str, card: str, *, overwrite: bool = False
) -> None:
    """Write the trained model to ``out``, whole or not at all.

    Args:
        model: the trained model; it must not be used after ``merged``.
        out: the directory to make.
        form: what to write.
        base: the name under which others find the language model.
        card: the text of the model card, its ``README.md``.
        overwrite: replace ``out`` where it exists.

    Raises:
        InputError: ``out`` exists, or the method cannot be written in this form.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: give another out=<directory>, or overwrite=true.")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _WRITERS[form](model, part)
        _name_base_model(part, base)
        (part / "README.md").write_text(card, encoding="utf-8")
        if out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_generator(model: Adapted, out: Path) -> None:
    if not isinstance(model, QPAModel):
        raise InputError("This run has no generator (qpa=off): give format=peft or format=merged.")
    model.save_pretrained(out)


def _write_adapter(model: Adapted, out: Path) -> None:
    plain = _plain(model)
    _require_pefts_own(plain, Format.peft)
    save_adapter(plain, out)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Write an adapter in PEFT's format, and nothing of the language model."""
    # PEFT would add a copy of the embedding to an adapter on lm_head: it is not trained.
    model.save_pretrained(str(directory), save_embedding_layers=False)


def _write_merged(model: Adapted, out: Path) -> None:
    plain = _plain(model)
    _require_pefts_own(plain, Format.merged)
    _require_unquantized(plain)
    _untie_adapted_head(plain)
    try:
        merged = plain.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"{_method(plain)} cannot be merged into the weights: give format=peft."
        ) from error
    merged.save_pretrained(out)


_WRITERS = {
    Format.peft: _write_adapter,
    Format.merged: _write_merged,
    Format.qpa: _write_generator,
}


def _plain(model: Adapted) -> PeftModel:
    return model.to_peft() if isinstance(model, QPAModel) else model


def _method(model: PeftModel) -> str:
    kind = model.peft_config[model.active_adapter].peft_type
    return str(getattr(kind, "value", kind)).lower()


def _require_pefts_own(model: PeftModel, form: Format) -> None:
    """The paper's prefix and ffa are layers of this package, which nothing else can read."""
    config = model.peft_config[model.active_adapter]
    if not type(config).__module__.startswith("peft."):
        what = "is a type that PEFT has" if form is Format.peft else "can be merged into a weight"
        raise InputError(f"Nothing of {_method(model)} {what}: give format=qpa.")


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
