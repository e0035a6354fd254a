"""The layers of ``mlp`` and ``linear``: an MLP whose first layer reads windows of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from qpa_exp.generator.mappings import ACTIVATIONS, MAPPING_INITS

_WORTH_IT = 2**18
"""Numbers in the windows written out, below which that takes less time."""


def linear_in_windows(
    bits: Float[Tensor, "chunks qubits"],
    features: Float[Tensor, "circuits states"],
    weight: Float[Tensor, "n_out n_in"],
    bias: Float[Tensor, " n_out"],
    window: int,
    *,
    in_order: bool,
) -> Float[Tensor, "at_least_chunks n_out"]:
    """Give the linear layer of, for each chunk i, its bits and ``window`` features from place i on.

    Written out, n chunks that read ``window`` numbers each are a matrix of n times window numbers,
    nearly all of them copies. But s neighbours read only s + window - 1 numbers between them: they
    become one row, and the weight stands in a matrix s times, each time a place further down. The
    product with that gives the outputs of all s chunks, side by side.

    Each circuit's features are a ring: the first follows the last. The layer reads them circuit
    by circuit, behind the bits: n_in = qubits + circuits * window.

    Args:
        bits: of each chunk, the most significant first.
        features: of all basis states.
        weight: of the layer.
        bias: of the layer.
        window: how many features of a circuit a chunk reads.
        in_order: ``bits`` are those of 0, 1, 2 and so on.

    Returns:
        The outputs for the chunks, and behind them, sometimes, some that are nobody's.
    """
    n_chunks, n_qubits = bits.shape
    n_low = _low_bits(n_chunks, len(weight), window) if in_order else 0
    if n_low == 0:
        read = in_windows(features, n_chunks, window)
        return linear(torch.cat([bits, *read], dim=1), weight, bias)
    together, n_high = 2**n_low, max(0, n_qubits - n_low)  # there may be no bits at all
    # Chunks of one row differ in their last bits alone, and those are the same in every row.
    high, low = bits[::together, :n_high], bits[:together, n_high:]
    every_row = linear(low, weight[:, n_high:n_qubits], bias).view(1, -1)
    read = in_windows(features, len(high), window + together - 1, step=together)
    spread = [_spread(w, together) for w in weight[:, n_qubits:].split(window, dim=1)]
    left = torch.cat([high, *read, high.new_ones(len(high), 1)], dim=1)
    right = torch.cat([weight[:, :n_high].T.repeat(1, together), *spread, every_row])
    return (left @ right).view(-1, len(weight))


def in_windows(
    features: Float[Tensor, "circuits states"], n: int, window: int, step: int = 1
) -> Float[Tensor, "circuits n window"]:
    """``window`` numbers from every ``step``-th place on; the first follows the last."""
    length = (n - 1) * step + window
    turns = -(-length // features.shape[-1])
    line = torch.cat([features] * turns, dim=-1) if turns > 1 else features
    return line[:, :length].unfold(-1, window, step)


def _low_bits(n_chunks: int, n_out: int, window: int) -> int:
    """log2 of how many chunks make a row: as leave both matrices about equally small."""
    if n_chunks * window < _WORTH_IT:
        return 0
    together = min(math.sqrt(n_chunks / n_out), window)
    return round(math.log2(together)) if together >= 2 else 0


def _spread(weight: Float[Tensor, "n_out window"], times: int) -> Float[Tensor, "longer outputs"]:
    """Return the transposed weight ``times`` times side by side, each time one row further down."""
    rows, longer = pad(weight.T, (0, 0, times - 1, times - 1)), weight.shape[1] + times - 1
    places = torch.arange(longer, device=weight.device)[:, None]
    places = places + torch.arange(times - 1, -1, -1, device=weight.device)
    return rows.index_select(0, places.flatten()).view(longer, -1)


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
        if draw := MAPPING_INITS[init]:  # a signal then keeps its size through the layers
            for layer in self:
                if isinstance(layer, nn.Linear):
                    getattr(nn.init, draw)(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(  # type: ignore[override]
        self, bits: Float[Tensor, "chunks qubits"], features: Float[Tensor, "circuits states"]
    ) -> Float[Tensor, "at_least_chunks n_out"]:
        """Give the parameters of each chunk, from its bits and the features of all basis states."""
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
