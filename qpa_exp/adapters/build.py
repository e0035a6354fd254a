"""From a config to the model that a run trains."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from qpa_exp.adapters.building import build_peft_model
from qpa_exp.adapters.checkpointing import checkpoint_activations
from qpa_exp.adapters.counts import Counts, count_model
from qpa_exp.adapters.methods.catalogue import make_peft_config
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import Config

Adapted = QPAModel | PeftModel


def adapt(model: PreTrainedModel, config: Config) -> Adapted:
    """The method on the language model: generated, or under ``qpa=off`` trained itself.

    Raises:
        InputError: a target that does not exist, or more qubits than the back end takes.
    """
    peft_config = make_peft_config(config.peft)
    adapted: Adapted
    if config.qpa.variant == "off":
        adapted = build_peft_model(model, peft_config, config.qpa.seed)
    else:
        adapted = get_qpa_model(model, peft_config, config.qpa)
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(model)
    return adapted


def count(model: Adapted) -> Counts:
    """The sizes of what :func:`adapt` built."""
    if isinstance(model, QPAModel):
        return count_model(model.peft_model, model.generator)
    return count_model(model, None)
