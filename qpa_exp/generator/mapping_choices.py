"""What the mapping model may be made with: ``qpa.activation`` and ``qpa.mapping_init``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from torch import nn


def _kaiming(layer: nn.Linear) -> None:
    """Weights of variance 2 / n_in, no biases: a signal keeps its size through the layers."""
    from torch import nn

    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


ACTIVATIONS: Registry[str | None] = Registry(
    "qpa.activation", {"none": None, "relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}
)
"""The names of ``torch.nn``'s modules."""

MAPPING_INITS: Registry[Callable[[nn.Linear], None]] = Registry(
    "qpa.mapping_init",
    {"default": lambda layer: None, "kaiming": _kaiming},  # noqa: ARG005
)
"""What is done to each layer after torch has drawn its own weights."""
