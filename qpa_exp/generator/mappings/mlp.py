"""An MLP with biases, the paper's mapping model (Table 1); linear without hidden layers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from qpa_exp.config import QPAConfig
from qpa_exp.generator.mappings import MappingKind

if TYPE_CHECKING:
    from torch import nn


def widths(config: QPAConfig, n_bits: int) -> tuple[int, ...]:
    """List the layers' widths, from a chunk's bits and features to its ``n_mlp`` parameters."""
    assert config.n_mlp is not None
    assert config.window is not None
    return (n_bits + config.n_circuits * config.window, *config.mapping_hidden, config.n_mlp)


def _count(config: QPAConfig, n_bits: int) -> int:
    return sum((wide + 1) * narrow for wide, narrow in pairwise(widths(config, n_bits)))


def _make(config: QPAConfig, n_bits: int, in_order: bool) -> nn.Module:
    from qpa_exp.generator.generator import MappingModel

    return MappingModel(widths(config, n_bits), config, in_order=in_order)


def _scale(config: QPAConfig) -> float:
    assert config.window is not None
    if config.mapping_hidden:
        return 0.02
    return 0.1 * math.sqrt(128 / (config.window * config.n_circuits))


def _widest(config: QPAConfig) -> int:
    assert config.n_mlp is not None
    return max([*config.mapping_hidden, config.n_mlp])


ENTRY = MappingKind(
    "MLP", _count, _make, _scale, _widest,
    reads=("qpa.mapping_hidden", "qpa.activation", "qpa.mapping_init"),
)  # fmt: skip
