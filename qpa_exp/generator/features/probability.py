"""The probability itself (Eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.generator.features import Feature

if TYPE_CHECKING:
    from torch import Tensor


def _read(probabilities: Tensor, n_qubits: int) -> Tensor:
    return probabilities


ENTRY = Feature("p", _read)
