"""The mapping model: from a basis state and its probability to n_mlp parameters (Table 1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from qpa_exp.config import Activation, MappingInit

HIDDEN = (32, 64, 128, 128, 64, 32, 32)
"""Table 1 prints one 32 -> 32 layer fewer; the paper's parameter counts need it."""

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.gelu: nn.GELU,
    Activation.tanh: nn.Tanh,
}


class MappingModel(nn.Sequential):
    """An MLP, N + 1 -> 32 -> 64 -> 128 -> 128 -> 64 -> 32 -> 32 -> n_mlp, with biases.

    The activation stands between the layers, never after the last.
    """

    def __init__(
        self,
        n_qubits: int,
        n_mlp: int,
        activation: Activation,
        init: MappingInit = MappingInit.default,
    ) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((n_qubits + 1, *HIDDEN, n_mlp)):
            if layers and activation is not Activation.none:
                layers.append(_ACTIVATIONS[activation]())
            layers.append(nn.Linear(n_in, n_out))
        super().__init__(*layers)
        if init is MappingInit.kaiming:
            self._kaiming()

    def _kaiming(self) -> None:
        """Weights of variance 2 / n_in, no biases: a signal keeps its size through the layers."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
