"""The layer of ``ffa``, a bottleneck inserted before a linear layer.

x -> x + up(act(down(x))), with biases and a bottleneck of a quarter of the layer's k inputs (after
Houlsby et al. 2019): m = 2 k (k/4) + k/4 + k. The paper does not name its activation; ours is GELU.
``up`` starts at zero, so the adapter starts as the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType
from torch import Tensor, nn

from qpa_exp.adapters.methods._input_layer import InputLayer, InputTuner, register

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


@dataclass
class FFAConfig(PeftConfig):
    """Which layers, and what the bottleneck is.

    Attributes:
        reduction: the layer's inputs divided by this is the bottleneck's width, rounded down.
        activation: gelu, relu or tanh.
        target_modules: names of linear layers, or a regular expression.
    """

    reduction: int = 4
    activation: str = "gelu"
    target_modules: list[str] | set[str] | str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a reduction below 1, or an unknown activation."""
        super().__post_init__()
        self.peft_type = PeftType("QPA_FFA")
        if self.reduction < 1:
            raise ValueError(f"reduction={self.reduction} is too small: give at least 1.")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation={self.activation} is unknown: give one of {', '.join(_ACTIVATIONS)}."
            )
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class FFALayer(InputLayer):
    """A linear layer with a residual bottleneck before it."""

    adapter_layer_names = ("qpa_ffa_down", "qpa_ffa_up")
    other_param_names = ("activation",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.qpa_ffa_down = nn.ModuleDict()
        self.qpa_ffa_up = nn.ModuleDict()
        self.activation: dict[str, str] = {}

    def add_adapter(self, name: str, config: FFAConfig) -> None:
        """``down`` at nn.Linear's own random start, ``up`` at zero.

        Raises:
            ValueError: a reduction that leaves no bottleneck.
        """
        width = self.in_features // config.reduction
        if width < 1:
            raise ValueError(
                f"reduction={config.reduction} leaves nothing of {self.in_features} inputs."
            )
        self.activation[name] = config.activation
        self.qpa_ffa_down[name] = nn.Linear(self.in_features, width)
        self.qpa_ffa_up[name] = nn.Linear(width, self.in_features)
        for tensor in self.qpa_ffa_up[name].parameters():
            nn.init.zeros_(tensor)

    def change(self, x: Tensor, name: str) -> Tensor:
        """X + up(act(down(x))), computed in the adapter's type."""
        down, up = self.qpa_ffa_down[name], self.qpa_ffa_up[name]
        given = x.to(next(down.parameters()).dtype)
        inner = _ACTIVATIONS[self.activation[name]](down(given))
        return x + up(inner).to(x.dtype)


class FFATuner(InputTuner):
    """Puts a :class:`FFALayer` on each targeted layer."""

    prefix = "qpa_ffa_"
    tuner_layer_cls = FFALayer


register("qpa_ffa", FFAConfig, FFATuner)
