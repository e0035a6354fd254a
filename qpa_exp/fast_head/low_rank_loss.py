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

from qpa_exp.fast_head.logit_passes import Terms, add_product, can_compile, exponentiate, largest
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


BUFFER_BYTES = 256 * 2**20
"""The most that the logits of one chunk of tokens take."""

_ALIGNED = 16
"""Columns of a product are a multiple of so many, the last ones of nothing: a product into rows of
no whole number of registers takes half as long again."""


@dataclass(frozen=True)
class LowRank:
    """LoRA's update of the head, ``scaling * B (A x)``, and DoRA's length of each output.

    Attributes:
        a: (r, k).
        b: (vocab, r).
        scaling: ``lora_alpha / r``.
        magnitude: (vocab,), or None for plain LoRA.
        inputs: (tokens, k), what A is given; None = the hidden states. With dropout they differ.
    """

    a: Float[Tensor, "r k"]
    b: Float[Tensor, "vocab r"]
    scaling: float = 1.0
    magnitude: Float[Tensor, " vocab"] | None = None
    inputs: Float[Tensor, "tokens k"] | None = None


def low_rank_loss(
    head: FrozenHead,
    hidden: Float[Tensor, "tokens k"],
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    update: LowRank | None = None,
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> tuple[Float[Tensor, ""], Float[Tensor, " tokens"]]:
    """The weighted sum of the cross entropies of the head's logits.

    Gradients go to the tensors of ``update``; without one, to ``hidden`` where it requires one,
    which takes a second product with the head. All but the products with the head is in float32.

    Args:
        head: the frozen head.
        hidden: what enters it.
        targets: the tokens to predict; ``IGNORED`` where there is none.
        weights: of each prediction in the loss.
        update: LoRA or DoRA on the head; None is the head as it is.
        buffer_bytes: the most that the logits of one chunk take; one token is always taken.

    Returns:
        The loss, and the nats of each prediction, which have no gradient: 0 without a target.

    Example:
        >>> head = FrozenHead(torch.eye(3))
        >>> loss, nats = low_rank_loss(head, torch.zeros(2, 3), torch.tensor([0, 2]), torch.ones(2))
        >>> float(loss)  # 2 ln 3
        2.1972246170043945
    """
    if update is not None and hidden.requires_grad:
        raise ValueError("An update of the head is for hidden states that are constants.")
    places = (targets != IGNORED).nonzero()[:, 0]
    hidden, weights = hidden.index_select(0, places), weights[places].float()
    leaves = [hidden] if update is None else [update.a, update.b]
    if update is not None and update.magnitude is not None:
        leaves.append(update.magnitude)
    if update is not None and update.inputs is not None:
        update = replace(update, inputs=update.inputs[places])
    sought = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        found, gradients = _in_chunks(
            head, hidden.detach(), targets[places], weights, update, sought, buffer_bytes
        )
        loss = found @ weights
        nats = found.new_zeros(targets.shape).index_copy(0, places, found)
    if sought:
        typed = [g.to(leaf.dtype) for g, leaf in zip(gradients, leaves, strict=True)]
        loss = with_gradients(loss, leaves, typed)
    return loss, nats


def _in_chunks(
    head: FrozenHead,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    update: LowRank | None,
    sought: bool,
    buffer_bytes: int,
) -> tuple[Tensor, list[Tensor]]:
    """Nats, and where they are sought the gradients of A, B and the magnitude, or of ``hidden``."""
    of_hidden = torch.empty_like(hidden, dtype=torch.float32) if sought and update is None else None
    of_update = sought and update is not None
    if update is None:  # the head as it is: an update of rank 0
        update = LowRank(head.weight.new_empty(0, hidden.shape[1]), head.weight[:, :0])
    a, b = update.a.float(), update.b.float()
    (vocab, rank), scaling = b.shape, update.scaling * head.final.scale
    norms = share = None
    if update.magnitude is not None:  # DoRA's norms are constants (Sec. 4.3 of its paper)
        norms = _adapted_norms(head, a, b, update.scaling)
        share = update.magnitude.float() / norms
    # The logits before the soft cap are share (W h + offset + B u) + bias, and u is scaling A x.
    ones = b.new_ones(vocab) if share is None else share
    bias = [] if head.bias is None else [head.bias.float()[:, None] * head.final.scale]
    left = torch.cat([ones[:, None], b * ones[:, None], *bias], 1)
    scaled_b = left[:, 1 : 1 + rank].contiguous()
    fast = can_compile(b.device, head.dtype, rank)

    # B's gradient needs u in columns; that of DoRA's share the offset beside it, if there is one.
    columns = slice(0 if share is not None and head.dtype.itemsize == 2 else 1, 1 + rank)
    of_a, of_left = torch.zeros_like(a), torch.zeros_like(left[:, columns])
    of_share = torch.zeros_like(ones)
    kinds = 2 if of_update and share is not None else 1
    most = max(1, buffer_bytes // (kinds * vocab * head.dtype.itemsize))
    size = -(-len(targets) // max(1, -(-len(targets) // most))) or 1  # chunks of even size
    # One for all chunks: of two, the first would still be held by the C library.
    room = head.room(kinds * vocab * _aligned(size)).view(kinds, -1)
    nats = torch.empty(len(targets), device=hidden.device)
    for begin in range(0, len(targets), size):
        span = slice(begin, begin + size)
        y, w = targets[span], weights[span]
        x = (hidden if update.inputs is None else update.inputs)[span].float()
        u = (x @ a.T) * scaling
        right = torch.cat([u.new_zeros(1, len(u)), u.T, u.new_ones(len(bias), len(u))])
        terms = Terms(left, right, share, head.final.soft_cap)
        chunk = _exponentials(
            head, fast, hidden[span], y, terms, room, scaled_b if of_update else b[:, :0], sought
        )
        nats[span] = chunk.nats
        # dL/dz = w (softmax - one-hot target), times the soft cap's slope.
        of_exponential, of_target = w / chunk.sums, w * chunk.target_slope
        if of_update:
            of_u = chunk.towards_u.T * of_exponential[:, None] - scaled_b[y] * of_target[:, None]
            of_a.addmm_(of_u.T, x, alpha=scaling)
            factors = right[columns].T
            add_product(chunk.stored, factors * of_exponential[:, None], of_left, fast=fast)
            of_left.index_add_(0, y, -factors * of_target[:, None])
        if chunk.stored_raw is not None:
            add_product(chunk.stored_raw, of_exponential[:, None], of_share[:, None], fast=fast)
            of_share.index_add_(0, y, -chunk.target_product * of_target)
        if of_hidden is not None:
            softmax = chunk.stored.mul_((1 / chunk.sums).to(head.dtype))
            at_target = y, torch.arange(len(y), device=y.device)
            softmax[at_target] -= chunk.target_slope.to(head.dtype)
            of_hidden[span] = head.back(softmax) * w[:, None]
    if of_hidden is not None:
        return nats, [of_hidden]
    if share is None or norms is None:
        return nats, [of_a, of_left]
    of_b = of_left[:, -rank:]
    of_share += of_left[:, :-rank].sum(1) + (b * of_b).sum(1)
    return nats, [of_a, of_b * share[:, None], of_share / norms]


class _Exponentials(NamedTuple):
    """Of one chunk.

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
    hidden: Tensor,
    targets: Tensor,
    terms: Terms,
    room: Tensor,
    b: Tensor,
    keep: bool,
) -> _Exponentials:
    """One chunk; the offsets of a product in 16 bits go to the first row of ``terms.right``."""
    vocab, tokens = len(terms.left), len(targets)
    width = _aligned(tokens)
    product, *more = (part[: vocab * width].view(vocab, width) for part in room)
    stored, stored_raw = product[:, :tokens], more[0][:, :tokens] if more else None
    padded = F.pad(hidden, (0, 0, 0, width - tokens))
    limit = 1e4 if stored.dtype == torch.float16 else 1e30
    for blocks in (1, None):
        offset = head.product(padded, product)
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
    """The norms of the rows of W + s B A, without making that matrix.

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
    """A loss whose gradients are known: the backward pass scales them by the loss's own."""
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
