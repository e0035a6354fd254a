"""A control: fixed normal numbers, which the mapping model reads as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import Ansatz, side_by_side
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from torch import nn


def _make(config: QPAConfig, n_qubits: int, n_chunks: int) -> nn.Module:
    import torch

    from qpa_exp.circuits.controls import FixedNumbers

    return FixedNumbers(torch.randn(side_by_side(config, n_chunks)))


ENTRY = Ansatz("Gaussian numbers", trained=False, reads_feature=False, control=_make)
