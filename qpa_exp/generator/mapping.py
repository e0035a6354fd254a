"""The mapping model: from a basis state and its probability to n_mlp parameters (Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from qpa_exp.config import Activation, MappingInit

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.gelu: nn.GELU,
    Activation.tanh: nn.Tanh,
}


class MappingModel(nn.Sequential):
    """An MLP with biases; the paper's is N + 1 -> ``TABLE_1`` -> n_mlp.

    The activation stands between the layers, never after the last.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        activation: Activation,
        init: MappingInit = MappingInit.default,
    ) -> None:
        layers: list[nn.Module] = []
        for wide, narrow in pairwise((n_in, *hidden, n_out)):
            if layers and activation is not Activation.none:
                layers.append(_ACTIVATIONS[activation]())
            layers.append(nn.Linear(wide, narrow))
        super().__init__(*layers)
        if init is MappingInit.kaiming:
            self._kaiming()

    def _kaiming(self) -> None:
        """Weights of variance 2 / n_in, no biases: a signal keeps its size through the layers."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
