"""The mapping model: from a basis state and its probability to n_mlp parameters (Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from qpa_exp.generator.windows import linear_in_windows

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


class MappingModel(nn.Sequential):
    """An MLP with biases; the paper's is N + 1 -> ``TABLE_1`` -> n_mlp.

    The activation stands between the layers, never after the last. The first layer reads a chunk's
    N bits and, of each circuit, some features from the chunk's own on.

    Attributes:
        window: how many features of a circuit a chunk reads.
        in_order: chunk i has the bits of i.
        scale: a factor on all that it gives.
    """

    def __init__(
        self,
        n_qubits: int,
        hidden: Sequence[int],
        n_out: int,
        activation: str,
        init: str = "default",
        *,
        n_circuits: int = 1,
        window: int = 1,
        in_order: bool = True,
        scale: float = 1.0,
    ) -> None:
        layers: list[nn.Module] = []
        for wide, narrow in pairwise((n_qubits + n_circuits * window, *hidden, n_out)):
            if layers and activation != "none":
                layers.append(_ACTIVATIONS[activation]())
            layers.append(nn.Linear(wide, narrow))
        super().__init__(*layers)
        self.window, self.in_order, self.scale = window, in_order, scale
        if init == "kaiming":
            self._kaiming()

    def forward(  # type: ignore[override]
        self,
        bits: Float[Tensor, "chunks qubits"],
        features: Float[Tensor, "circuits states"],
    ) -> Float[Tensor, "at_least_chunks n_out"]:
        """The parameters of each chunk, from its bits and the features of all basis states."""
        first, *others = self
        weights = self._weights(first)
        x = linear_in_windows(bits, features, *weights, self.window, in_order=self.in_order)
        for layer in others:
            x = linear(x, *self._weights(layer)) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def _weights(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Weight and bias; those of the last layer are scaled, which are fewer than its outputs."""
        assert isinstance(layer, nn.Linear)
        if layer is not self[-1] or self.scale == 1:
            return layer.weight, layer.bias
        return self.scale * layer.weight, self.scale * layer.bias

    def _kaiming(self) -> None:
        """Weights of variance 2 / n_in, no biases: a signal keeps its size through the layers."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
