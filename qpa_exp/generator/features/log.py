"""log(1 + 2^N p): of the order of 1, however many qubits there are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.generator.features import Feature


def logarithm(
    probabilities: Float[Tensor, "circuits states"], n_qubits: int
) -> Float[Tensor, "circuits states"]:
    """log(1 + 2^N p)."""
    return torch.log1p(probabilities * 2**n_qubits)


ENTRY = Feature("log(1 + 2^N p)", logarithm)
