"""Gradient checkpointing through a frozen backbone.

transformers checkpoints a layer only while it is in training mode, and a frozen backbone never
is: its dropout must not act. So its checkpointed layers carry the mark of training, and compute,
and compute again in the backward pass, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(model: PreTrainedModel, **options: Any) -> None:
    """Let every layer keep its input alone, and compute the rest again in the backward pass.

    Args:
        model: the frozen language model, with or without PEFT's layers in it.
        options: what the model's own ``activation_checkpointing_enable`` takes.
    """
    model.activation_checkpointing_enable(**options)
    for layer in _checkpointed(model):
        layer._gradient_checkpointing_func = _in_evaluation(layer)


def mark_checkpointed(model: nn.Module, mode: bool) -> None:
    """Give the checkpointed layers, and nothing within them, the mark of training."""
    for layer in _checkpointed(model):
        layer.training = mode


def _checkpointed(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            yield module


def _in_evaluation(layer: Any) -> Callable[..., Any]:
    """The layer's checkpointing function, with the mark of training taken off while it computes."""
    checkpoint = layer._gradient_checkpointing_func

    def checkpoint_in_evaluation(compute: Callable[..., Any], *inputs: Any) -> Any:
        def frozen(*inputs: Any) -> Any:
            marked, layer.training = layer.training, False
            try:
                return compute(*inputs)
            finally:
                layer.training = marked

        return checkpoint(frozen, *inputs)

    return checkpoint_in_evaluation
