"""What the mapping model reads of a probability (``qpa.feature``): one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Feature:
    """An entry of ``qpa.feature``.

    Attributes:
        label: its name in figures.
        read: from the probabilities, (circuits, states), and the number of qubits to the
            features, of the same shape; of the order of 1 or smaller. A function of a module, so
            that a generator with it can be pickled.

    Examples:
        >>> import torch
        >>> from qpa_exp.generator.features import FEATURES
        >>> FEATURES["log"].read(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), 2)  # log(1 + 2^N p)
        tensor([[1.0986, 1.0986, 0.0000, 0.0000]])
    """

    label: str
    read: Callable[[Tensor, int], Tensor]


FEATURES: Registry[Feature] = Registry("qpa.feature", "qpa_exp.generator.features")
