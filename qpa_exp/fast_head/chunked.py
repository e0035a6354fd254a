"""The loss of any head at all, a chunk of tokens at a time.

:mod:`qpa_exp.fast_head.head_loss` knows what LoRA computes. Here the head is a function that torch
differentiates, whatever is in it; the logits of a whole batch are never held, nor is their softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qpa_exp.fast_head.head_loss import IGNORED, HeadLoss

Head = Callable[[Tensor, int], Tensor]
"""Hidden states (rows, tokens, k), and the position of the first token -> logits."""

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk take in float32; torch holds a few times as much."""


def chunked_loss(
    head: Head,
    trained: Sequence[Tensor],
    hidden: Float[Tensor, "rows tokens k"],
    targets: Int[Tensor, "rows tokens"],
    weights: Float[Tensor, "rows tokens"],
    vocab: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> HeadLoss:
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
        The loss, and (rows, tokens) nats, 0 where there is no target.
    """
    most = max(1, chunk_bytes // (4 * vocab))
    loss, nats = _ChunkedLoss.apply(head, hidden.detach(), targets, weights, most, *trained)
    return HeadLoss(loss, nats)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients together; the backward pass scales them by the loss's own gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        most: int,
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sought = [t for t in trained if t.requires_grad] if any(ctx.needs_input_grad) else []
        sums = {id(t): torch.zeros_like(t) for t in sought}
        nats = torch.zeros(targets.shape, device=hidden.device)
        for rows, tokens in rectangles(targets.shape[0], targets.shape[1], most):
            with torch.set_grad_enabled(bool(sought)):
                logits = head(hidden[rows, tokens], tokens.start)
            nats[rows, tokens], slope = _cross_entropy(
                logits.detach(), targets[rows, tokens], weights[rows, tokens], bool(sought)
            )
            if slope is None or not logits.requires_grad:
                continue
            for tensor, found in zip(
                sought, torch.autograd.grad(logits, sought, slope, allow_unused=True), strict=True
            ):
                if found is not None:
                    sums[id(tensor)] += found
        ctx.gradients = [sums.get(id(t)) for t in trained]
        ctx.mark_non_differentiable(nats)
        return (nats * weights).sum(), nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*[None] * 5, *[None if g is None else g * grad for g in ctx.gradients])


def rectangles(rows: int, tokens: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, tokens) into rectangles of at most ``most``: whole rows, or parts of one."""
    wide = min(tokens, most)
    tall = max(1, most // tokens) if tokens else rows
    for row in range(0, rows, max(1, tall)):
        for token in range(0, tokens, max(1, wide)):
            yield slice(row, min(row + tall, rows)), slice(token, min(token + wide, tokens))


def _cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Nats, and the gradient of the weighted loss in the logits, in their type."""
    z = logits.float()
    has_target = targets != IGNORED
    at = targets.where(has_target, 0)[..., None]
    log_sums = z.logsumexp(-1, keepdim=True)
    nats = (log_sums - z.gather(-1, at))[..., 0].where(has_target, 0.0)
    if not with_slope:
        return nats, None
    slope = (z - log_sums).exp_()
    slope.scatter_add_(-1, at, -torch.ones_like(log_sums))
    slope.mul_((weights * has_target)[..., None])
    return nats, slope.to(logits.dtype)
