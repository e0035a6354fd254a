"""A new run from weights that another one has trained: ``init_from``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from qpa_exp.adapters import saved_generator
from qpa_exp.adapters.peft_model import peft_dict, whole_modules
from qpa_exp.adapters.qpa_model import AdaptedModel, QPAModel
from qpa_exp.adapters.saved_method import CONFIG, read_adapter, same_shapes
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError

_HOW_IT_IS_COMPUTED = (
    "backend", "device", "noise", "shots", "final_shots", "gradient", "spsa_step"
)  # fmt: skip
"""Keys of ``qpa`` that may differ: the weights mean the same under each."""

_OF_THE_FILE = ("base_model_name_or_path", "peft_version", "revision")


def start_from(model: AdaptedModel, source: Path) -> None:
    """Give a model that has just been built the weights that were trained before.

    Args:
        model: it is changed in place.
        source: the directory of a saved generator or adapter.

    Raises:
        InputError: it is missing or damaged, or it was trained under another generator, method or
            language model; the model is as it was then.
    """
    is_generator, what = (source / CONFIG).is_file(), f"init_from={source}"
    if not isinstance(model, QPAModel):
        if is_generator:
            raise InputError(f"{what} holds a generator, and this run trains none (qpa=off).")
        config, weights = read_adapter(source)
        _compare_method(what, config, model)
        peft_model = model.peft_model
        has = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        if not same_shapes(weights, has):
            raise InputError(f"{what} holds tensors of another model's shapes.")
        set_peft_model_state_dict(peft_model, weights)
        return
    if not is_generator:
        raise InputError(f"{what} holds no generator, which this run trains: give qpa=off.")
    saved = saved_generator.read(source)
    _compare_method(what, saved.peft_config, model)
    _compare(what, _qpa_values(saved.qpa_config), _qpa_values(model.generator.config), "qpa.")
    whole = dict(whole_modules(model.peft_model))
    shapes = {name: list(t.shape) for name, t in model.base_model.generated_tensors().items()}
    if saved.shapes != shapes or not same_shapes(saved.whole, saved_generator.peft_names(whole)):
        raise InputError(f"{what} holds tensors of another model's shapes.")
    saved.load_into(model.generator, whole)
    model.refresh()


def _qpa_values(config: QPAConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {key: value for key, value in values.items() if key not in _HOW_IT_IS_COMPUTED}


def _peft_values(config: PeftConfig) -> dict[str, Any]:
    return {
        key: sorted(value) if isinstance(value, list) else value
        for key, value in peft_dict(config).items()
        if key not in _OF_THE_FILE and "dropout" not in key
    }


def _compare(what: str, there: Mapping[str, Any], here: Mapping[str, Any], group: str) -> None:
    for key in sorted(there.keys() | here.keys()):
        one, other = there.get(key), here.get(key)
        if one != other:
            raise InputError(
                f"{what} does not fit this run: {group}{key} is {one} there and {other} here."
            )


def _compare_method(what: str, config: PeftConfig, model: AdaptedModel) -> None:
    """Compare the methods, and the language models by their ids on the hub."""
    own = model.peft_model.active_peft_config
    _compare(what, _peft_values(config), _peft_values(own), "peft.")
    there, here = str(config.base_model_name_or_path or ""), model.language_model().name_or_path
    if there != here and saved_generator.is_hub_id(there) and saved_generator.is_hub_id(here):
        raise InputError(f"{what} was trained on the language model {there}, not on {here}.")
