"""What may stand in the circuit's place, so that a study can tell what the circuit adds."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class FixedNumbers(nn.Module):
    """The same numbers at every call. They are no part of a checkpoint: the seed rebuilds them."""

    numbers: Tensor
    evaluations = 0

    def __init__(self, numbers: Float[Tensor, "*circuits numbers"]) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self) -> Float[Tensor, "*circuits numbers"]:
        """Return always the same."""
        return self.numbers


class FreeLogits(nn.Module):
    """A softmax of trained logits, one for each chunk; no other basis state has a probability."""

    evaluations = 0

    def __init__(self, logits: Float[Tensor, "*circuits chunks"]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self) -> Float[Tensor, "*circuits chunks"]:
        """Return the chunks' probabilities."""
        return self.logits.softmax(-1)
