"""The mapping model: from a basis state and its probability to n_mlp parameters (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from qpa_exp.generator.mapping_choices import ACTIVATIONS, MAPPING_INITS
from qpa_exp.generator.windows import linear_in_windows


class MappingModel(nn.Sequential):
    """An MLP with biases; the paper's is N + 1 -> ``TABLE_1`` -> n_mlp.

    The activation stands between the layers, never after the last. The first layer reads a chunk's
    N bits and, of each circuit, some features from the chunk's own on.

    Args:
        widths: of what it reads, of the hidden layers, and of what it gives for a chunk.
        activation: a name of ``qpa.activation``.
        init: a name of ``qpa.mapping_init``.
        window: how many features of a circuit a chunk reads.
        in_order: chunk i has the bits of i, the most significant first.
        scale: a factor on all that it gives.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str,
        init: str = "default",
        *,
        window: int = 1,
        in_order: bool = True,
        scale: float = 1.0,
    ) -> None:
        layers: list[nn.Module] = []
        between = ACTIVATIONS[activation]
        for wide, narrow in pairwise(widths):
            if layers and between is not None:
                layers.append(getattr(nn, between)())
            layers.append(nn.Linear(wide, narrow))
        super().__init__(*layers)
        self.window, self.in_order, self.scale = window, in_order, scale
        for layer in self:
            if isinstance(layer, nn.Linear):
                MAPPING_INITS[init](layer)

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
