"""Few shots, blended with a network's guess of the same probabilities (``qpa.blend``).

HPQS (Liu 2025, arXiv:2505.16676) blends what a circuit measured with few shots with a neural
estimator, and used that for QPA. Of the paper the abstract was at hand; our reading of it is

    p = a p_shots + (1 - a) p_net

where p_net is a small MLP from a basis state's bits to a logit, and a softmax over the states that
the mapping model reads. a is fixed, or trained as the sigmoid of a number that starts at 0. The
network is trained with everything else, through the language model's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad


class StateEstimator(nn.Module):
    """Blends what was measured with a softmax of a network's logits.

    Args:
        widths: from the bits through the hidden layers, with GELUs between them, to a logit for
            each circuit.
        bits: of the basis states in use, in the order of their probabilities; the others, behind
            them, have the probability 0.
        weight: of what was measured, from 0 to 1; None trains it.
    """

    bits: Tensor

    def __init__(
        self, widths: Sequence[int], bits: Float[Tensor, "used qubits"], weight: float | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.GELU()] * bool(layers) + [nn.Linear(wide, narrow)]
        self.network = nn.Sequential(*layers)
        self.register_buffer("bits", bits, persistent=False)
        self.fixed = weight
        if weight is None:
            self.logit = nn.Parameter(torch.zeros(()))

    @property
    def weight(self) -> float | Tensor:
        """Return the weight of what was measured."""
        return self.logit.sigmoid() if self.fixed is None else self.fixed

    def forward(
        self, measured: Float[Tensor, "circuits states"]
    ) -> Float[Tensor, "circuits states"]:
        """Return the blended probabilities, for each circuit."""
        guessed = self.network(self.bits).T.softmax(-1).to(measured.dtype)
        guessed = pad(guessed, (0, measured.shape[-1] - guessed.shape[-1]))
        return self.weight * measured + (1 - self.weight) * guessed
