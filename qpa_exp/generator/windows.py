"""A linear layer whose rows are windows of one line of numbers, without making the windows.

Written out, n chunks that read ``window`` numbers each are a matrix of n times window numbers,
nearly all of them copies. But s neighbours read only s + window - 1 numbers between them: they
become one row, and the weight stands in a matrix s times, each time a place further down. The
product with that gives the outputs of all s chunks, side by side. The two matrices are small, and
nothing of the outputs' size is made but the outputs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad

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
    """The linear layer of, for each chunk i, its bits and ``window`` features from place i on.

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
    together, n_high = 2**n_low, n_qubits - n_low
    # Chunks of one row differ in their last bits alone, and those are the same in every row.
    high, low = bits[::together, :n_high], bits[:together, n_high:]
    every_row = linear(low, weight[:, n_high:n_qubits], bias).view(1, -1)
    read = in_windows(features, len(high), window + together - 1, step=together)
    spread = [_spread(w, together) for w in weight[:, n_qubits:].split(window, dim=1)]
    left = torch.cat([high, *read, torch.ones_like(high[:, :1])], dim=1)
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
    """log2 of how many chunks make a row: as many as leave both matrices about equally small."""
    if n_chunks * window < _WORTH_IT:
        return 0
    together = min(math.sqrt(n_chunks / n_out), window)
    return round(math.log2(together)) if together >= 2 else 0


def _spread(weight: Float[Tensor, "n_out window"], times: int) -> Float[Tensor, "longer outputs"]:
    """The transposed weight ``times`` times side by side, each time one row further down."""
    rows, longer = pad(weight.T, (0, 0, times - 1, times - 1)), weight.shape[1] + times - 1
    places = torch.arange(longer, device=weight.device)[:, None]
    places = places + torch.arange(times - 1, -1, -1, device=weight.device)
    return rows.index_select(0, places.flatten()).view(longer, -1)
