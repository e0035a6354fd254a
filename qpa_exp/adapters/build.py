"""From a config to the model that a run trains, and from its files to the same again."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from qpa_exp.adapters.adapted import AdaptedModel, ClassicalModel
from qpa_exp.adapters.checkpointing import checkpoint_activations
from qpa_exp.adapters.peft_config import make_peft_config
from qpa_exp.adapters.peft_model import build_peft_model
from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
from qpa_exp.config import Config
from qpa_exp.generator.variants import VARIANTS


def adapt(
    base_model: PreTrainedModel, config: Config, task_type: str = "CAUSAL_LM"
) -> AdaptedModel:
    """The method on the language model: generated, or under ``qpa=off`` trained itself.

    Args:
        base_model: it is changed in place.
        config: of the run.
        task_type: PEFT's name for what the model does: ``CAUSAL_LM`` or ``SEQ_CLS``.

    Raises:
        InputError: a target that does not exist, or more qubits than the back end takes.
    """
    peft_config = make_peft_config(config.peft, task_type)
    adapted: AdaptedModel
    if VARIANTS[config.qpa.variant].generates:
        adapted = get_qpa_model(base_model, peft_config, config.qpa)
    else:
        adapted = ClassicalModel(build_peft_model(base_model, peft_config, config.qpa.seed))
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(base_model)
    return adapted


def load_adapted(
    base_model: PreTrainedModel, directory: str | Path, config: Config
) -> AdaptedModel:
    """What a run's :meth:`~AdaptedModel.save_pretrained` wrote, on its language model; evaluating.

    Raises:
        InputError: files that are missing, damaged, or were saved for another model.
    """
    kind = QPAModel if VARIANTS[config.qpa.variant].generates else ClassicalModel
    return kind.from_pretrained(base_model, directory)
