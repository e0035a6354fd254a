"""``log``, less its mean over the circuit's states and divided by its standard deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.generator.features import Feature

if TYPE_CHECKING:
    from torch import Tensor


def _read(probabilities: Tensor, n_qubits: int) -> Tensor:
    import torch

    logarithm = torch.log1p(probabilities * 2**n_qubits)
    return torch.nn.functional.layer_norm(logarithm, logarithm.shape[-1:])


ENTRY = Feature("normalised log(1 + 2^N p)", _read)
