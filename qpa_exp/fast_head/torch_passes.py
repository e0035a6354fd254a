"""The passes over a chunk's logits in torch's operations, a block of the vocabulary at a time.

:mod:`qpa_exp.fast_head.compiled_passes` has the same two functions for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BLOCKS = {"cpu": 2**20}
_BLOCK_ELSEWHERE = 2**26
"""Logits that are worked on at a time: on a CPU 4 MB, which stay in its cache."""


@dataclass(frozen=True)
class Terms:
    """How a product becomes logits: ``cap tanh((share product + left right) / cap)``.

    Attributes:
        left: (vocab, n); the first column is ``share``, or 1.
        right: (n, tokens); the first row is the product's offset.
        share: (vocab,), DoRA's factor of each output; None for 1.
        soft_cap: None for none.
    """

    left: Float[Tensor, "vocab n"]
    right: Float[Tensor, "n tokens"]
    share: Float[Tensor, " vocab"] | None = None
    soft_cap: float | None = None

    def at(
        self, product: Float[Tensor, " tokens"], targets: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """The logit of one target for each token, from its product; and the soft cap's slope."""
        share = 1.0 if self.share is None else self.share[targets]
        z = product * share + (self.left[targets] * self.right.T).sum(1)
        if self.soft_cap is None:
            return z, torch.ones_like(z)
        bent = torch.tanh(z / self.soft_cap)
        return bent * self.soft_cap, 1 - bent.square()

    def apply(
        self, block: Float[Tensor, "rows tokens"], rows: slice, shift: Float[Tensor, " tokens"]
    ) -> Float[Tensor, "rows tokens"] | None:
        """A block of the product becomes the logits less ``shift``, in place.

        Returns:
            The square of the soft cap's tanh, which is 1 less its slope; None without one.
        """
        if self.share is not None:
            block.mul_(self.share[rows, None])
        if self.soft_cap is None and self.share is None:  # the shift is one more of the additions
            block.addmm_(self.left[rows], torch.cat([self.right[:1] - shift, self.right[1:]]))
            return None
        if self.soft_cap is None:
            block.addmm_(self.left[rows], self.right).sub_(shift)
            return None
        per_cap = 1 / self.soft_cap
        block.addmm_(self.left[rows], self.right, beta=per_cap, alpha=per_cap).tanh_()
        square = block.square()
        torch.sub(-shift, block, alpha=-self.soft_cap, out=block)
        return square


def largest(
    stored: Shaped[Tensor, "vocab tokens"], terms: Terms, *, blocks: int | None = None
) -> Float[Tensor, " tokens"]:
    """The largest logit of each token, of the first so many blocks; None = of all."""
    found = torch.full((stored.shape[1],), -torch.inf, device=stored.device)
    for rows in list(_blocks(stored))[:blocks]:
        block = stored[rows].to(torch.float32, copy=True)
        terms.apply(block, rows, torch.zeros_like(found))
        found = torch.maximum(found, block.amax(0))
    return found


def exponentiate(
    stored: Shaped[Tensor, "vocab tokens"],
    stored_raw: Shaped[Tensor, "vocab tokens"] | None,
    terms: Terms,
    shift: Float[Tensor, " tokens"],
    b: Float[Tensor, "vocab r"],
    *,
    keep: bool = True,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "r tokens"]]:
    """The product becomes ``exp(logits - shift)``, in place, times the slope of the soft cap.

    Args:
        stored: the product with the head.
        stored_raw: is given the same, times that product; None = not wanted.
        terms: how logits come from the product.
        shift: of each token.
        b: what the result is multiplied with, before it is rounded to the type stored.
        keep: whether the result is wanted, and not the sums alone.

    Returns:
        In float64 the exponentials' sums over the vocabulary, without the slope, and
        ``b^T`` times the result.
    """
    sums = torch.zeros(shift.shape, dtype=torch.float64, device=stored.device)
    towards = sums.new_zeros(b.shape[1], len(shift))
    for rows in _blocks(stored):
        block = stored[rows].float()  # itself, or a copy where it has another type
        product = None if stored_raw is None else block.clone()
        square = terms.apply(block, rows, shift)
        sums += block.exp_().sum(0)
        if not keep:
            continue
        if square is not None:
            block.addcmul_(block, square, value=-1)
        towards += b[rows].T @ block
        if stored_raw is not None and product is not None:
            stored_raw[rows] = product.mul_(block)
        if stored.dtype != torch.float32:
            stored[rows] = block
    return sums, towards


def add_product(
    stored: Shaped[Tensor, "vocab tokens"],
    columns: Float[Tensor, "tokens n"],
    to: Float[Tensor, "vocab n"],
) -> None:
    """Add ``stored`` times a few columns to ``to``."""
    for rows in _blocks(stored):
        to[rows].addmm_(stored[rows].float(), columns)


def _blocks(stored: Tensor) -> Iterator[slice]:
    vocab, tokens = stored.shape
    size = max(1, BLOCKS.get(stored.device.type, _BLOCK_ELSEWHERE) // max(1, tokens))
    for begin in range(0, vocab, size):
        yield slice(begin, min(begin + size, vocab))
