"""A control: every one of the 2^N probabilities is 1 / 2^N, and nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import Ansatz, side_by_side
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from torch import nn


def _make(config: QPAConfig, n_qubits: int, n_chunks: int) -> nn.Module:
    import torch

    from qpa_exp.circuits.controls import FixedNumbers

    return FixedNumbers(torch.full(side_by_side(config, 2**n_qubits), 0.5**n_qubits))


ENTRY = Ansatz("no circuit", trained=False, control=_make)
