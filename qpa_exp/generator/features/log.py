"""log(1 + 2^N p): of the order of 1, however many qubits there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.generator.features import Feature

if TYPE_CHECKING:
    from torch import Tensor


def _read(probabilities: Tensor, n_qubits: int) -> Tensor:
    return (probabilities * 2**n_qubits).log1p()


ENTRY = Feature("log(1 + 2^N p)", _read)
