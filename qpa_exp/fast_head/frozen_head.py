"""A frozen head: its weight as products take it, and what the model does to its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

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


_ROWS = 2048
"""Rows of the weight that are converted at a time."""

_PRODUCT_ROWS = 16384
"""Rows of the weight to a product in 16 bits."""


@dataclass(frozen=True)
class FinalLogits:
    """What a language model does to its head's output: ``cap * tanh(scale * z / cap)``.

    Gemma-2 caps at 30; Cohere, Granite and others scale.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """The logits, in the shape and type of ``z``."""
        scaled = z if self.scale == 1.0 else z * self.scale
        if self.soft_cap is None:
            return scaled
        return torch.tanh(scaled / self.soft_cap) * self.soft_cap


@dataclass(eq=False)
class FrozenHead:
    """A frozen linear head, and what the model does to its output.

    In 16 bits a product would be spoilt by what all logits of a token share: GPT-2's have an
    offset of -30 to -100, which bfloat16 rounds to steps of 1/4 and more. So there the offset is
    taken away before the result is rounded, and given beside it, in float32.

    Attributes:
        weight: (vocab, k).
        bias: (vocab,), or None.
        final: scale and soft cap of the logits.
        low: a type of 16 bits that products are taken in where it is not the weight's own. The
            weight is then kept a second time in that type, less its mean row.
    """

    weight: Tensor
    bias: Tensor | None = None
    final: FinalLogits = field(default_factory=FinalLogits)
    low: torch.dtype | None = None

    def __post_init__(self) -> None:
        self._room: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type that products are taken in."""
        return self.low or self.weight.dtype

    @cached_property
    def operand(self) -> Tensor:
        """The weight as products take it: itself, or the copy in ``low``."""
        if self.dtype == self.weight.dtype:
            return self.weight
        copy = torch.empty_like(self.weight, dtype=self.dtype)
        for rows, part in zip(self.weight.split(_ROWS), copy.split(_ROWS), strict=True):
            part.copy_(rows.float() - self.mean_row)
        return copy

    @cached_property
    def mean_row(self) -> Float[Tensor, " k"]:
        """The mean of the weight's rows, in float32."""
        sums = [rows.double().sum(0) for rows in self.weight.split(_ROWS)]
        return (torch.stack(sums).sum(0) / len(self.weight)).float()

    @cached_property
    def row_norms(self) -> Float[Tensor, " vocab"]:
        """The Euclidean norm of each row of the weight, in float32."""
        norms = [torch.linalg.norm(rows.float(), dim=1) for rows in self.weight.split(_ROWS)]
        return torch.cat(norms)

    def room(self, size: int) -> Tensor:
        """Memory for so many products, not to be kept past the step that asked for it.

        On a CPU it is the same every time: a block of that size, once freed, is often cut into by
        something small, and the next one then is a second one.
        """
        room = self._room
        if room is None or len(room) < size:
            room = torch.empty(size, dtype=self.dtype, device=self.weight.device)
        self._room = room if room.device.type == "cpu" else None
        return room[:size]

    def times(self, columns: Float[Tensor, "k n"]) -> Float[Tensor, "vocab n"]:
        """The weight times a few columns, in float32."""
        if self.weight.dtype == torch.float32:
            return self.weight @ columns
        return torch.cat([rows.float() @ columns for rows in self.weight.split(_ROWS)])

    def product(
        self, hidden: Float[Tensor, "tokens k"], out: Float[Tensor, "vocab tokens"]
    ) -> Float[Tensor, " tokens"] | None:
        """``scale * W h`` into ``out``, without the bias, less the offset of each token.

        Returns:
            (tokens,) offsets in float32, or None where they are zero.
        """
        scaled = hidden if self.final.scale == 1.0 else hidden.float() * self.final.scale
        h = scaled.to(self.dtype)
        if self.dtype.itemsize > 2:
            torch.mm(self.operand, h.T, out=out)
            return None
        offset = h.float() @ self.mean_row
        if self.operand is not self.weight:  # the copy has none in it
            for rows, part in self._parts(out):
                torch.mm(rows, h.T, out=part)
            return offset
        offset = offset.to(self.dtype)
        for rows, part in self._parts(out):
            torch.addmm(part.copy_((-offset).expand_as(part)), rows, h.T, out=part)
        return offset.float()

    def _parts(self, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A large product in 16 bits would first rearrange the whole weight, in as much memory."""
        return zip(self.operand.split(_PRODUCT_ROWS), out.split(_PRODUCT_ROWS), strict=True)

    def back(self, gradient: Float[Tensor, "vocab tokens"]) -> Float[Tensor, "tokens k"]:
        """The transposed product, ``scale * gradient^T W``, in float32."""
        towards = (gradient.T @ self.operand).float()
        if self.operand is not self.weight:
            towards += gradient.float().sum(0)[:, None] * self.mean_row
        return towards * self.final.scale


def multiplies_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device multiplies matrices of this type of 16 bits faster than float32's."""
    if device.type != "cpu":
        return True
    can = torch.cpu.get_capabilities()
    return dtype == torch.bfloat16 and bool(can.get("amx_bf16") or can.get("avx512_bf16"))
