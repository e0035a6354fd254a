"""The loss of any head at all, a chunk of tokens at a time.

:mod:`qpa_exp.fast_head.low_rank_loss` knows what LoRA computes. Here the head is a function that
torch differentiates, whatever is in it; the logits of a whole batch are never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qpa_exp.fast_head.low_rank_loss import with_gradients
from qpa_exp.lm.losses import IGNORED

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk take in float32; torch holds a few times as much."""


def any_head_loss(
    head: Callable[[Tensor], Tensor],
    trained: Sequence[Tensor],
    hidden: Float[Tensor, "rows tokens k"],
    targets: Int[Tensor, "rows tokens"],
    weights: Float[Tensor, "rows tokens"],
    vocab: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
    """The weighted sum of the cross entropies of the head's logits, in float32.

    Args:
        head: gives (rows, tokens, vocab) logits for any rectangle of the hidden states.
        trained: the tensors within ``head`` that gradients go to. They are leaves, or what the
            head itself is made from.
        hidden: constants.
        targets: the tokens to predict; ``IGNORED`` where there is none.
        weights: of each prediction in the loss.
        vocab: the head's outputs.
        chunk_bytes: the most that a chunk's logits take; one token is always taken.

    Returns:
        The loss, and the nats of each prediction, which have no gradient: 0 without a target.
    """
    sought = [t for t in trained if t.requires_grad] if torch.is_grad_enabled() else []
    gradients = [torch.zeros_like(t) for t in sought]
    nats = torch.zeros(targets.shape, device=hidden.device)
    for part in rectangles(targets.shape[0], targets.shape[1], max(1, chunk_bytes // (4 * vocab))):
        with torch.set_grad_enabled(bool(sought)):
            logits = head(hidden[part].detach()).flatten(0, 1).float()
            at = targets[part].flatten()
            found = F.cross_entropy(logits, at, ignore_index=IGNORED, reduction="none")
            loss = found @ weights[part].flatten()
        nats[part] = found.detach().view_as(nats[part])
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, sought, allow_unused=True)
            for total, slope in zip(gradients, slopes, strict=True):
                if slope is not None:
                    total += slope
    return with_gradients((nats * weights).sum(), sought, gradients), nats


def rectangles(rows: int, tokens: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, tokens) into rectangles of at most ``most``: whole rows, or parts of one."""
    wide = max(1, min(tokens, most))
    tall = max(1, most // wide)
    for row in range(0, rows, tall):
        for token in range(0, tokens, wide):
            yield slice(row, min(row + tall, rows)), slice(token, min(token + wide, tokens))
