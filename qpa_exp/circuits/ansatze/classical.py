"""A control: a softmax of free logits, one for each chunk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qpa_exp.circuits.ansatz import Ansatz, side_by_side
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from torch import nn


class _Classical(Ansatz):
    def count(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> int:  # noqa: ARG002
        return math.prod(side_by_side(config, n_chunks))

    def make(self, config: QPAConfig, n_qubits: int, n_chunks: int) -> nn.Module:
        from qpa_exp.circuits.controls import FreeLogits

        return FreeLogits(side_by_side(config, n_chunks), n_qubits)


ENTRY = _Classical("free logits")
