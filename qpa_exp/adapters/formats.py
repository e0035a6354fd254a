"""What is exported: a plain PEFT adapter, a merged language model, or the compact generator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError

from qpa_exp.adapters.catalogue import METHODS, pefts_types
from qpa_exp.adapters.generated import merged, method_name
from qpa_exp.adapters.qpa_model import AdaptedModel
from qpa_exp.adapters.saved_method import CONFIG, save_adapter
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import write_text
from qpa_exp.files.whole_directory import whole_directory
from qpa_exp.registry import Registry


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
