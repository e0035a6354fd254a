"""The mapping model, from a chunk's bits and features to its parameters (``qpa.mapping``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpa_exp.config import QPAConfig
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class MappingKind:
    """An entry of ``qpa.mapping``.

    The config that its functions are given has nothing left open. Each is told how many bits a
    chunk has, which is 0 where there is no circuit.

    Attributes:
        label: its name in figures.
        count: how many numbers are trained.
        make: the module, from torch's global stream. It is called with the bits, (chunks, bits),
            and the features, (circuits, states), and gives (at least chunks, n_mlp). The last
            argument says whether chunk i has the bits of i, the most significant first.
        scale: the rule for ``qpa.scale``: a step of the optimizer then takes a generated parameter
            equally far, whatever a chunk reads.
        widest: the most numbers that are kept of a chunk between the layers.
        reads: the config keys that have an effect under it alone.

    Examples:
        >>> from qpa_exp.config import QPAConfig
        >>> from qpa_exp.generator.mappings import MAPPINGS
        >>> config = QPAConfig(n_mlp=64, window=128, mapping_hidden=[])
        >>> MAPPINGS["linear"].count(config, 11)  # 64 (11 + 128) weights and 64 biases
        8960
    """

    label: str
    count: Callable[[QPAConfig, int], int]
    make: Callable[[QPAConfig, int, bool], nn.Module]
    scale: Callable[[QPAConfig], float]
    widest: Callable[[QPAConfig], int]
    reads: tuple[str, ...] = ()


MAPPINGS: Registry[MappingKind] = Registry(
    "qpa.mapping",
    "qpa_exp.generator.mappings",
    decides=("qpa.mapping_hidden", "qpa.activation", "qpa.mapping_init", "qpa.bond_dim"),
)

ACTIVATIONS: Registry[str | None] = Registry(
    "qpa.activation", {"none": None, "relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}
)
"""The names of ``torch.nn``'s modules."""

MAPPING_INITS: Registry[str | None] = Registry(
    "qpa.mapping_init", {"default": None, "kaiming": "kaiming_normal_"}
)
"""The names of functions in ``torch.nn.init``; None keeps torch's own weights and biases."""
