"""What may stand in the circuit's place, so that a study can tell what the circuit adds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FixedNumbers(nn.Module):
    """The same numbers at every call. They are no part of a checkpoint: the seed rebuilds them."""

    numbers: Tensor
    evaluations = 0

    def __init__(self, numbers: Float[Tensor, "*circuits numbers"], n_qubits: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self) -> Float[Tensor, "*circuits numbers"]:
        """Always the same."""
        return self.numbers


class FreeLogits(nn.Module):
    """A softmax of trained logits, one for each chunk.

    Attributes:
        logits: normally distributed at the start, about as uneven as a random circuit.
    """

    evaluations = 0

    def __init__(self, shape: tuple[int, ...], n_qubits: int) -> None:
        super().__init__()
        self.n_qubits = n_qubits
        self.logits = nn.Parameter(torch.randn(shape))

    def forward(self) -> Float[Tensor, "*circuits chunks"]:
        """The chunks' probabilities; no other basis state has any."""
        return self.logits.softmax(-1)
