"""A control: a softmax of free logits, one a chunk, about as a random circuit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import Ansatz, side_by_side
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from torch import nn


def _make(config: QPAConfig, n_qubits: int, n_chunks: int) -> nn.Module:
    import torch

    from qpa_exp.circuits.controls import FreeLogits

    return FreeLogits(torch.randn(side_by_side(config, n_chunks)))


ENTRY = Ansatz("free logits", control=_make)
