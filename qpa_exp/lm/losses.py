"""Turns logits into the losses that training and testing report."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""The label of a position that has none, as transformers and torch have it."""


@dataclass(frozen=True)
class TokenLosses:
    """The negative log-likelihood in nats of each predicted token, and which tokens are text.

    Token t + 1 is predicted from tokens 1 to t, so a row of T tokens has T - 1 predictions and
    its first token is never predicted.
    """

    nats: Float[Tensor, "rows predictions"]
    is_text: Bool[Tensor, "rows predictions"]

    @property
    def text_sum(self) -> Tensor:
        """Nats over the real tokens."""
        return self.nats.masked_fill(~self.is_text, 0.0).sum()

    @property
    def text_count(self) -> Tensor:
        """How many real tokens are predicted."""
        return self.is_text.sum()

    @property
    def text_mean(self) -> Tensor:
        """Nats a real token; its exponential is ``perplexity``."""
        return self.text_sum / self.text_count.clamp_min(1)

    @property
    def padded_mean(self) -> Tensor:
        """Nats a position, padding included; its exponential is ``perplexity_padded``."""
        return self.nats.mean()


def token_losses(
    logits: Float[Tensor, "rows tokens vocab"],
    input_ids: Int[Tensor, "rows tokens"],
    labels: Int[Tensor, "rows tokens"],
) -> TokenLosses:
    """Return the loss of every prediction in a batch, in float32 whatever the logits' type.

    Args:
        logits: the language model's output.
        input_ids: the tokens, right-padded: each is predicted, padding too.
        labels: the same where a token counts as text, ``IGNORED`` elsewhere.
    """
    # The targets are shifted, not the logits: a slice of those would be copied, and its gradient
    # copied back. The last token's prediction has no target.
    targets = F.pad(input_ids[:, 1:], (0, 1), value=IGNORED).flatten()
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none"
    ).view(input_ids.shape)
    return TokenLosses(nats[:, :-1], labels[:, 1:] != IGNORED)
