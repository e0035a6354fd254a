"""The loss of a frozen head without its softmax, and the gradients of what is small.

With only the head adapted, a training step is one product of the hidden states with the frozen
weight, a softmax, and the gradients of a few small tensors. This is one pass over the logits:

- they are made once for a chunk of tokens, vocabulary by tokens, and overwritten by their
  exponentials a block at a time, while the block lies in the processor's cache;
- the gradients are taken from those at once, so that nothing of the size of the logits outlives
  its chunk; the backward pass only scales them;
- the exponentials are relative to a value for each token that is at most its largest logit, found
  in the first block. Where that is too low for the numbers to hold, the chunk is done again,
  relative to the largest logit itself.

The loss is a weighted sum, so that the weights (of a mean over real tokens, or over all positions)
are known when the gradients are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from qpa_exp.fast_head.logit_passes import (
    Terms,
    add_product,
    can_compile,
    exponentiate,
    largest,
    multiply_back,
)
from qpa_exp.lm.losses import IGNORED

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
        """Return the logits, in the shape and type of ``z``."""
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
        """Return the weight times a few columns, in float32."""
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

    def add(
        self,
        u: Float[Tensor, "tokens r"],
        b: Float[Tensor, "vocab r"],
        out: Float[Tensor, "vocab tokens"],
        *,
        afresh: bool = False,
    ) -> None:
        """``B u`` is added to ``out``, or put there, in the type of the head's own product."""
        columns = u.to(self.dtype).T
        for rows, part in zip(b.split(_PRODUCT_ROWS), out.split(_PRODUCT_ROWS), strict=True):
            torch.addmm(part, rows.to(self.dtype), columns, beta=0 if afresh else 1, out=part)

    def _parts(self, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut the weight: in 16 bits a large product would first copy it whole."""
        return zip(self.operand.split(_PRODUCT_ROWS), out.split(_PRODUCT_ROWS), strict=True)

    def back(self, gradient: Float[Tensor, "vocab tokens"]) -> Float[Tensor, "tokens k"]:
        """Return the transposed product, ``scale * gradient^T W``, in float32."""
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


BUFFER_BYTES = 256 * 2**20
"""The most that the logits of one chunk of tokens take."""

_ALIGNED = 16
"""Columns of a product are a multiple of so many, the last ones of nothing: a product into rows of
no whole number of registers takes half as long again."""


_NARROW_IN_16_BITS = 64
"""The largest rank of an update whose product is taken in float32 beside a head's of 16 bits."""


@dataclass(frozen=True)
class Update:
    """What a method makes of the head: ``share (W h) + B u + bias`` for each token.

    Attributes:
        hidden: (tokens, k), what the frozen product takes; None where it is left out.
        u: (tokens, r), and
        b: (vocab, r): a product that is added; None for none.
        share: (vocab,), a factor of each of the frozen product's outputs; None for 1.
        bias: (vocab,), a constant; None for none.
    """

    hidden: Float[Tensor, "tokens k"] | None
    u: Float[Tensor, "tokens r"] | None = None
    b: Float[Tensor, "vocab r"] | None = None
    share: Float[Tensor, " vocab"] | None = None
    bias: Float[Tensor, " vocab"] | None = None


def dora(
    head: FrozenHead,
    hidden: Float[Tensor, "tokens k"],
    a: Float[Tensor, "r k"],
    b: Float[Tensor, "vocab r"],
    scaling: float,
    magnitude: Float[Tensor, " vocab"],
) -> Update:
    """LoRA's update ``scaling B (A h)``, and each output's row then as long as its magnitude.

    The norms of the rows are constants (Sec. 4.3 of DoRA's paper).
    """
    with torch.no_grad():
        norms = _adapted_norms(head, a.float(), b.float(), scaling)
    share = magnitude.float() / norms
    u = (hidden.float() @ a.float().T) * scaling
    return Update(hidden, u, b.float() * share[:, None], share, head.bias)


def low_rank_loss(
    head: FrozenHead,
    update: Update,
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> tuple[Float[Tensor, ""], Float[Tensor, " tokens"]]:
    """Return the weighted sum of the cross entropies of the head's logits.

    Gradients go to the tensors of ``update``, and from there to what they were made from; to its
    hidden states it takes a second product with the head. All but the products with the head, and
    others nearly as large, is in float32.

    Args:
        head: the frozen head.
        update: what enters it, and what a method makes of it.
        targets: the tokens to predict; ``IGNORED`` where there is none.
        weights: of each prediction in the loss.
        buffer_bytes: the most that the logits of one chunk take; one token is always taken.

    Returns:
        The loss, and the nats of each prediction, which have no gradient: 0 without a target.

    Examples:
        >>> head, targets = FrozenHead(torch.eye(3)), torch.tensor([0, 2])
        >>> loss, nats = low_rank_loss(head, Update(torch.zeros(2, 3)), targets, torch.ones(2))
        >>> float(loss)  # 2 ln 3
        2.1972246170043945
    """
    places = (targets != IGNORED).nonzero()[:, 0]
    weights = weights[places].float()
    update = replace(
        update,
        hidden=None if update.hidden is None else update.hidden.index_select(0, places),
        u=None if update.u is None else update.u.index_select(0, places),
    )
    leaves = {
        name: tensor
        for name in ("hidden", "u", "b", "share")
        if (tensor := getattr(update, name)) is not None
        and tensor.requires_grad
        and torch.is_grad_enabled()
    }
    with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
        found, gradients = _in_chunks(
            head, update, targets[places], weights, frozenset(leaves), buffer_bytes
        )
        loss = found @ weights
        nats = found.new_zeros(targets.shape).index_copy(0, places, found)
    if leaves:
        typed = [gradients[name].to(leaf.dtype) for name, leaf in leaves.items()]
        loss = with_gradients(loss, list(leaves.values()), typed)
    return loss, nats


def _in_chunks(
    head: FrozenHead,
    update: Update,
    targets: Tensor,
    weights: Tensor,
    sought: frozenset[str],
    buffer_bytes: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Nats, and the gradients of those tensors of the update that are sought."""
    vocab, scale, hidden, share = len(head.weight), head.final.scale, update.hidden, update.share
    u, b = weights.new_zeros(len(targets), 0), weights.new_zeros(vocab, 0)
    if update.u is not None and update.b is not None:
        u, b = update.u.detach().float() * scale, update.b.detach().float()
    in_product = hidden is None or (share is None and _joins_product(head, b.shape[1]))
    narrow = b[:, :0] if in_product else b
    # Logits before the soft cap are share (product + offset) + B u + bias.
    ones = weights.new_ones(vocab) if share is None else share.detach().float()
    bias = [] if update.bias is None else [update.bias.detach().float()[:, None] * scale]
    left = torch.cat([ones[:, None], narrow, *bias], 1)
    fast = can_compile(b.device, head.dtype, narrow.shape[1])

    of = {name: torch.zeros_like(getattr(update, name), dtype=torch.float32) for name in sought}
    kinds = 2 if "share" in sought else 1
    most = max(1, buffer_bytes // (kinds * vocab * head.dtype.itemsize))
    size = -(-len(targets) // max(1, -(-len(targets) // most))) or 1  # chunks of even size
    # One for all chunks: of two, the first would still be held by the C library.
    room = head.room(kinds * vocab * _aligned(size)).view(kinds, -1)
    nats = torch.empty(len(targets), device=b.device)
    for begin in range(0, len(targets), size):
        span = slice(begin, begin + size)
        y, w, v = targets[span], weights[span], u[span]
        inner = v[:, :0] if in_product else v
        right = torch.cat([v.new_zeros(1, len(v)), inner.T, v.new_ones(len(bias), len(v))])
        terms = Terms(left, right, None if share is None else ones, head.final.soft_cap)
        chunk = _exponentials(
            head,
            fast,
            None if hidden is None else hidden[span].detach(),
            (v, b) if in_product else (v[:, :0], narrow),
            y,
            terms,
            room,
            narrow if "u" in sought else b[:, :0],
            bool(sought),
        )
        nats[span] = chunk.nats
        # dL/dz = w (softmax - one-hot target), times the soft cap's slope.
        of_exponential, of_target = w / chunk.sums, w * chunk.target_slope
        if "u" in sought:
            towards = multiply_back(chunk.stored, b) if in_product else chunk.towards_u.T
            of["u"][span] = towards * of_exponential[:, None] - b[y] * of_target[:, None]
        # A product whose columns have to do with the exponentials: the offset's is share's.
        with_offset = "share" in sought and head.dtype.itemsize == 2
        columns = ([right[:1].T] if with_offset else []) + ([v] if "b" in sought else [])
        if columns:
            factors = torch.cat(columns, 1)
            to = factors.new_zeros(vocab, factors.shape[1]) if with_offset else of["b"]
            add_product(
                chunk.stored, factors * of_exponential[:, None], to, fast=fast and not in_product
            )
            to.index_add_(0, y, -factors * of_target[:, None])
            if with_offset:
                of["share"] += to[:, 0]
            if with_offset and "b" in sought:
                of["b"] += to[:, 1:]
        if chunk.stored_raw is not None:
            add_product(chunk.stored_raw, of_exponential[:, None], of["share"][:, None], fast=fast)
            of["share"].index_add_(0, y, -chunk.target_product * of_target)
        if "hidden" in sought:
            softmax = chunk.stored.mul_((1 / chunk.sums).to(head.dtype))
            at_target = y, torch.arange(len(y), device=y.device)
            softmax[at_target] -= chunk.target_slope.to(head.dtype)
            if share is not None:
                softmax.mul_(ones[:, None].to(head.dtype))
            of["hidden"][span] = head.back(softmax) * w[:, None]
    if "u" in sought:
        of["u"] *= scale
    return nats, of


def _joins_product(head: FrozenHead, rank: int) -> bool:
    """Whether an update of this rank is added up where the product with the head is."""
    if head.dtype.itemsize == 2:
        return rank > _NARROW_IN_16_BITS
    return not can_compile(head.weight.device, head.dtype, rank)


class _Exponentials(NamedTuple):
    """Holds the exponentials of one chunk.

    Attributes:
        nats: of each token.
        sums: of the exponentials of each token, relative to the shift that they have.
        stored: (vocab, tokens), the exponentials times the slope of the soft cap.
        stored_raw: for DoRA the same, times the product with the frozen head.
        towards_u: (r, tokens), B^T ``stored``.
        target_slope: the soft cap's slope at the target; 1 without one.
        target_product: the product with the frozen head at the target.
    """

    nats: Tensor
    sums: Tensor
    stored: Tensor
    stored_raw: Tensor | None
    towards_u: Tensor
    target_slope: Tensor
    target_product: Tensor


def _exponentials(
    head: FrozenHead,
    fast: bool,
    hidden: Tensor | None,
    more: tuple[Tensor, Tensor],
    targets: Tensor,
    terms: Terms,
    room: Tensor,
    b: Tensor,
    keep: bool,
) -> _Exponentials:
    """One chunk; the offsets of a product in 16 bits go to the first row of ``terms.right``.

    ``more``: u and B of a product that is added to that with the head.
    """
    vocab, tokens = len(terms.left), len(targets)
    width = _aligned(tokens)
    product, *second = (part[: vocab * width].view(vocab, width) for part in room)
    stored, stored_raw = product[:, :tokens], second[0][:, :tokens] if second else None
    h, u = (None if x is None else F.pad(x, (0, 0, 0, width - tokens)) for x in (hidden, more[0]))
    limit = 1e4 if stored.dtype == torch.float16 else 1e30
    for blocks in (1, None):
        offset = None if h is None else head.product(h, product)
        if u is not None and u.shape[1]:
            head.add(u, more[1], product, afresh=h is None)
        terms.right[0] = 0.0 if offset is None else offset[:tokens]
        target_product = stored[targets, torch.arange(tokens, device=targets.device)].float()
        target, slope = terms.at(target_product, targets)
        shift = torch.maximum(largest(stored, terms, blocks=blocks), target)
        sums, towards_u = exponentiate(stored, stored_raw, terms, shift, b, keep=keep, fast=fast)
        if (sums < limit).all():
            break
    nats = (sums.log() + (shift - target)).float()
    return _Exponentials(
        nats, sums.float(), stored, stored_raw, towards_u.float(), slope, target_product
    )


def _aligned(tokens: int) -> int:
    return -(-tokens // _ALIGNED) * _ALIGNED


def _adapted_norms(head: FrozenHead, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return the norms of the rows of W + s B A, without making that matrix.

    |w + s b A|^2 = |w|^2 + 2 s b.(A w) + s^2 b.(A A^T b): at b = 0 exactly the norm of w. Rows of
    which the update takes nearly all away are computed as they stand.
    """
    own = head.row_norms.square()
    added = scaling**2 * ((b @ (a @ a.T)) * b).sum(1)
    square = own + 2 * scaling * (b * head.times(a.T)).sum(1) + added
    cancelled = (square < 0.1 * (own + added)).nonzero()[:, 0]
    if len(cancelled):
        rows = head.weight[cancelled].double() + scaling * b[cancelled].double() @ a.double()
        square[cancelled] = rows.square().sum(1).float()
    return square.sqrt()


def with_gradients(
    loss: Float[Tensor, ""], tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return a loss whose gradients are known: the backward pass scales them by the loss's own."""
    found: Tensor = _WithGradients.apply(loss, gradients, *tensors)
    return found


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * grad for gradient in ctx.gradients)
