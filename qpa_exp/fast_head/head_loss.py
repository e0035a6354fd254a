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

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from qpa_exp.fast_head import head_kernels
from qpa_exp.fast_head.head import FrozenHead

IGNORED = -100
"""The target of a position that has none, as in ``torch.nn.functional.cross_entropy``."""

BUFFER_BYTES = 256 * 2**20
"""The most that the logits of one chunk of tokens take."""

_ALIGNED = 16
"""Columns of a product are a multiple of so many, the last ones of nothing."""

_MOST_COMPILED = 6
"""The largest rank whose products the compiled passes do; torch is faster at those of more."""

_BLOCKS = {"cpu": 2**20}
_BLOCK_ELSEWHERE = 2**26
"""Logits that are worked on at a time: on a CPU 4 MB, which stay in its cache."""


class HeadLoss(NamedTuple):
    """A loss to minimise, and the nats of each prediction, which have no gradient."""

    loss: Float[Tensor, ""]
    nats: Tensor


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
    scaling: float
    magnitude: Float[Tensor, " vocab"] | None = None
    inputs: Float[Tensor, "tokens k"] | None = None


def head_loss(
    head: FrozenHead,
    hidden: Float[Tensor, "tokens k"],
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    update: LowRank | None = None,
    *,
    buffer_bytes: int = BUFFER_BYTES,
) -> HeadLoss:
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
        The loss, and (tokens,) nats, 0 where there is no target.
    """
    if update is not None and hidden.requires_grad:
        raise ValueError("An update of the head is for hidden states that are constants.")
    kept = targets != IGNORED
    everything = bool(kept.all())
    if not everything:
        hidden, targets, weights = hidden[kept], targets[kept], weights[kept]
        if update is not None and update.inputs is not None:
            update = replace(update, inputs=update.inputs[kept])
    tensors = (None, None, None) if update is None else (update.a, update.b, update.magnitude)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, nats = _HeadLoss.apply(
            hidden, *tensors, head, targets, weights.float(), update, buffer_bytes
        )
    if not everything:
        nats = nats.new_zeros(kept.shape).masked_scatter(kept, nats)
    return HeadLoss(loss, nats)


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients together; the backward pass scales them by the loss's own gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        magnitude: Tensor | None,
        head: FrozenHead,
        targets: Tensor,
        weights: Tensor,
        update: LowRank | None,
        buffer_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        trained = any(ctx.needs_input_grad[1:4])
        own = None if update is None else _Update(update, head, trained)
        of_hidden = hidden.new_empty(hidden.shape) if ctx.needs_input_grad[0] else None
        nats = _Step(head, own, of_hidden).run(hidden, targets, weights, buffer_bytes)
        found = (of_hidden, *((None,) * 3 if own is None else own.gradients()))
        ctx.gradients = [
            None if g is None or of is None else g.to(of.dtype)
            for g, of in zip(found, (hidden, a, b, magnitude), strict=True)
        ]
        ctx.mark_non_differentiable(nats)
        return nats @ weights, nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*[None if g is None else g * grad for g in ctx.gradients], *[None] * 5)


class _Update:
    """A :class:`LowRank` in float32, as all chunks use it, and the gradients that they add up.

    ``share`` is DoRA's magnitude over norm, which multiplies each output; None for LoRA.
    """

    def __init__(self, update: LowRank, head: FrozenHead, trained: bool) -> None:
        self.a, self.b = update.a.detach().float(), update.b.detach().float()
        self.scaling = update.scaling * head.final.scale
        self.inputs = None if update.inputs is None else update.inputs.detach()
        self.trained = trained
        self.of_a, self.of_b = torch.zeros_like(self.a), torch.zeros_like(self.b)
        self.share: Tensor | None = None
        self.scaled_b = self.b
        if update.magnitude is not None:
            self.norms = _adapted_norms(head, self.a, self.b, update.scaling)
            self.share = update.magnitude.detach().float() / self.norms
            self.scaled_b = self.b * self.share[:, None]
            self.of_share = torch.zeros_like(self.share)

    def add(self, chunk: _Chunk, weights: Tensor) -> None:
        """dL/dz = w (p - e), p the softmax and e the one-hot target, times the cap's slope."""
        p, e = weights / chunk.sums, weights * chunk.target_slope
        towards_u = chunk.towards_u.T * p[:, None] - self.scaled_b[chunk.targets] * e[:, None]
        self.of_a.addmm_(towards_u.T, chunk.inputs.float(), alpha=self.scaling)
        chunk.add_product(chunk.stored, chunk.u * p[:, None], to=self.of_b)
        self.of_b.index_add_(0, chunk.targets, chunk.u * -e[:, None])
        if chunk.stored_raw is not None:
            chunk.add_product(chunk.stored_raw, p[:, None], to=self.of_share[:, None])
            self.of_share.index_add_(0, chunk.targets, -e * chunk.target_raw)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of A, B and the magnitude. DoRA's norms are constants (Sec. 4.3 of its paper)."""
        if not self.trained:
            return None, None, None
        if self.share is None:
            return self.of_a, self.of_b, None
        return self.of_a, self.of_b.mul_(self.share[:, None]), self.of_share / self.norms


def _adapted_norms(head: FrozenHead, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The norms of the rows of W + s B A, without making that matrix.

    |w + s b A|^2 = |w|^2 + 2 s b.(A w) + s^2 b.(A A^T b): at b = 0 exactly the norm of w. Rows of
    which the update takes nearly all away are computed as they stand.
    """
    own = head.row_norms().square()
    added = scaling**2 * ((b @ (a @ a.T)) * b).sum(1)
    square = own + 2 * scaling * (b * head.times(a.T)).sum(1) + added
    cancelled = (square < 0.1 * (own + added)).nonzero()[:, 0]
    if len(cancelled):
        rows = head.weight[cancelled].double() + scaling * b[cancelled].double() @ a.double()
        square[cancelled] = rows.square().sum(1).float()
    return square.sqrt()


class _Step:
    """One call of :func:`head_loss`: what its chunks share."""

    def __init__(self, head: FrozenHead, update: _Update | None, of_hidden: Tensor | None) -> None:
        self.head, self.update, self.of_hidden = head, update, of_hidden
        self.vocab = head.weight.shape[0]
        self.bias = None if head.bias is None else head.bias.detach().float() * head.final.scale
        self.share = None if update is None else update.share
        self.trained = update is not None and update.trained
        self.needs_gradients = self.trained or of_hidden is not None
        rank = 0 if update is None else len(update.a)
        self.compiled = rank <= _MOST_COMPILED and head_kernels.takes(
            head.weight.device, head.dtype
        )
        # DoRA's magnitude needs the logits before it, beside their exponentials.
        self.kinds = 2 if self.trained and self.share is not None else 1

    def run(
        self, hidden: Tensor, targets: Tensor, weights: Tensor, buffer_bytes: int
    ) -> Float[Tensor, " tokens"]:
        """All chunks; the nats of each token."""
        nats = torch.empty(len(targets), device=hidden.device)
        size = self._tokens_at_a_time(len(targets), buffer_bytes)
        # One for all chunks: of two, the first would still be held by the C library.
        room = self.head.buffer(self.kinds * self.vocab * _aligned(size))
        self.buffers = room.view(self.kinds, -1)
        for begin in range(0, len(targets), size):
            span = slice(begin, begin + size)
            inputs = self.update.inputs if self.update is not None else None
            h = hidden.detach()[span]
            chunk = _Chunk(self, h, h if inputs is None else inputs[span], targets[span])
            nats[span] = chunk.run()
            if self.update is not None and self.trained:
                self.update.add(chunk, weights[span])
            if self.of_hidden is not None:
                self.of_hidden[span] = chunk.towards_hidden(weights[span])
        return nats

    def _tokens_at_a_time(self, n_tokens: int, buffer_bytes: int) -> int:
        """As few chunks as fit into the buffer, of even size."""
        token_bytes = self.vocab * self.head.dtype.itemsize * self.kinds
        chunks = -(-n_tokens // max(1, buffer_bytes // token_bytes))
        return max(1, -(-n_tokens // max(1, chunks)))


def _aligned(tokens: int) -> int:
    return -(-tokens // _ALIGNED) * _ALIGNED


class _Chunk:
    """The logits of some tokens, vocabulary by tokens, and then their exponentials in place.

    Attributes:
        product: the head's product with the hidden states and, behind them, with nothing.
        stored: that of the tokens; then exp(logit - shift), times the slope of the soft cap.
        stored_raw: for DoRA, ``stored`` times the logit before the magnitude.
        sums: of the exponentials of each token.
        towards_u: (r, tokens), B^T ``stored``.
        target_slope: the soft cap's slope at the target; 1 without one.
    """

    target_slope: Tensor
    target_raw: Tensor

    def __init__(self, step: _Step, hidden: Tensor, inputs: Tensor, targets: Tensor) -> None:
        self.step, self.inputs, self.targets = step, inputs, targets
        vocab, tokens = step.vocab, len(targets)
        # Rows of a whole number of registers: a product into any others takes half as long again.
        columns = _aligned(tokens)
        buffers = [b[: vocab * columns].view(vocab, columns) for b in step.buffers]
        self.product, self.padded = buffers[0], F.pad(hidden, (0, 0, 0, columns - tokens))
        self.stored, *raw = (b[:, :tokens] for b in buffers)
        self.stored_raw = raw[0] if raw else None
        block = _BLOCKS.get(hidden.device.type, _BLOCK_ELSEWHERE)
        self.block_rows = max(1, min(vocab, block // max(1, tokens)))
        self.work = hidden.new_empty(self.block_rows, tokens, dtype=torch.float32)
        capped = step.head.final.soft_cap is not None
        self.squares = torch.empty_like(self.work) if capped else self.work
        self.left, self.right = self._additions()

    def _additions(self) -> tuple[Tensor, Tensor]:
        """What is added to the product, as columns times rows: LoRA, the bias, token by token."""
        step, work = self.step, self.work
        left, right = [work.new_ones(step.vocab, 1)], [work.new_zeros(1, len(self.targets))]
        if step.bias is not None and step.share is None:
            left.append(step.bias[:, None])
            right.append(torch.ones_like(right[0]))
        if step.update is not None:
            self.u = (self.inputs.float() @ step.update.a.T) * step.update.scaling
            left.append(step.update.b)
            right.append(self.u.T)
            self.towards_u = self.u.new_zeros(self.u.shape[::-1])
        return torch.cat(left, 1), torch.cat(right)

    def run(self) -> Float[Tensor, " tokens"]:
        """The nats of each token, and all that the gradients are made from."""
        self._multiply()
        target = self._target_logits()
        shift = torch.maximum(self._largest(self._blocks(most=1)), target)
        if not self._exponentiate(shift):
            self._multiply()
            shift = self._largest(self._blocks())
            self._exponentiate(shift)
        return self.sums.log() + shift - target

    def _multiply(self) -> None:
        """The product with the head; what it leaves out of each token goes to the additions."""
        offset = self.step.head.product(self.padded, self.product)
        self.right[0] = 0.0 if offset is None else offset[: len(self.targets)]

    def _blocks(self, most: int | None = None) -> Iterator[slice]:
        starts = range(0, len(self.stored), self.block_rows)
        for begin in starts if most is None else starts[:most]:
            yield slice(begin, min(begin + self.block_rows, len(self.stored)))

    def _target_logits(self) -> Float[Tensor, " tokens"]:
        """The logit of each token's target, from the product before it is overwritten."""
        at, step = self.targets, self.step
        raw = self.stored[at, torch.arange(len(at), device=at.device)].float()
        raw = raw + (self.left[at] * self.right.T).sum(1)
        if step.share is not None:
            self.target_raw = raw
            raw = raw * step.share[at] + (0.0 if step.bias is None else step.bias[at])
        cap = step.head.final.soft_cap
        self.target_slope = torch.ones_like(raw)
        if cap is None:
            return raw
        bent = torch.tanh(raw / cap)
        self.target_slope = 1 - bent.square()
        return bent * cap

    def _largest(self, blocks: Iterator[slice]) -> Float[Tensor, " tokens"]:
        largest = self.work.new_full((len(self.targets),), -torch.inf)
        for rows in blocks:
            block = self.work[: rows.stop - rows.start].copy_(self.stored[rows])
            logits, _ = self._logits(block, rows, torch.zeros_like(largest))
            largest = torch.maximum(largest, logits.amax(0))
        return largest

    def _in_float32(self, stored: Tensor, rows: slice) -> Tensor:
        """A block of what is stored: itself, or its copy where it has another type."""
        block = stored[rows]
        return block if block.dtype == torch.float32 else self.work[: len(block)].copy_(block)

    def _logits(self, block: Tensor, rows: slice, shift: Tensor) -> tuple[Tensor, Tensor | None]:
        """A block of the product becomes the logits less ``shift``, in place.

        Returns:
            It, and for DoRA the logits before the magnitude, where a gradient needs them. Of a
            capped block the square of its tanh is left in ``self.squares``.
        """
        step, cap, raw = self.step, self.step.head.final.soft_cap, None
        left, spare = self.left[rows], self.squares[: len(block)]
        if step.share is None and cap is None:  # the shift is one more of the additions
            right = torch.cat([self.right[:1] - shift, self.right[1:]])
            return block.addmm_(left, right), None
        per_cap = 1.0 if cap is None else 1 / cap
        if step.share is None:
            block.addmm_(left, self.right, beta=per_cap, alpha=per_cap)
        else:
            block.addmm_(left, self.right)
            raw = None if self.stored_raw is None else block.clone()
            block.mul_(step.share[rows, None] * per_cap)
            if step.bias is not None:
                block.add_(step.bias[rows, None] * per_cap)
        if cap is None:
            return block.sub_(shift), raw
        torch.square(block.tanh_(), out=spare)
        return torch.sub(-shift, block, alpha=-cap, out=block), raw

    def _exponentiate(self, shift: Float[Tensor, " tokens"]) -> bool:
        """The logits become exponentials; whether the sums of those are in range."""
        if self.step.compiled:
            self._exponentiate_compiled(shift)
        else:
            self._exponentiate_by_blocks(shift)
        limit = 1e4 if self.stored.dtype == torch.float16 else 1e30
        return bool((self.sums < limit).all())

    def _exponentiate_compiled(self, shift: Float[Tensor, " tokens"]) -> None:
        step = self.step
        b = step.update.scaled_b if step.trained and step.update else self.left[:, :0]
        late = step.bias if step.share is not None else None
        cap = step.head.final.soft_cap
        logits = head_kernels.Logits(self.left, self.right, step.share, late, cap)
        self.sums, self.towards_u = head_kernels.exponentiate(
            self.stored, self.stored_raw, logits, shift, b
        )

    def _exponentiate_by_blocks(self, shift: Float[Tensor, " tokens"]) -> None:
        step = self.step
        self.sums = torch.zeros_like(shift)
        scaled_b = step.update.scaled_b if step.update is not None and step.trained else None
        if scaled_b is not None:
            self.towards_u.zero_()
        for rows in self._blocks():
            block, raw = self._logits(self._in_float32(self.stored, rows), rows, shift)
            self.sums += block.exp_().sum(0)
            if not step.needs_gradients:
                continue
            if step.head.final.soft_cap is not None:  # its slope is 1 - tanh^2
                block.addcmul_(block, self.squares[: len(block)], value=-1)
            if scaled_b is not None:
                self.towards_u.addmm_(scaled_b[rows].T, block)
            if raw is not None and self.stored_raw is not None:
                self.stored_raw[rows] = raw.mul_(block)
            if self.stored.dtype != torch.float32:
                self.stored[rows] = block

    def add_product(self, stored: Tensor, columns: Tensor, to: Tensor) -> None:
        """Add ``stored`` times a few columns, (tokens, n), to (vocab, n)."""
        if self.step.compiled:
            head_kernels.add_product(stored, columns, to)
            return
        for rows in self._blocks():
            to[rows].addmm_(self._in_float32(stored, rows), columns)

    def towards_hidden(self, weights: Float[Tensor, " tokens"]) -> Float[Tensor, "tokens k"]:
        """The gradient of the hidden states; ``stored`` becomes the softmax less the target."""
        self.stored.mul_((1 / self.sums).to(self.stored.dtype))
        at = self.targets, torch.arange(len(self.targets), device=self.targets.device)
        self.stored[at] -= self.target_slope.to(self.stored.dtype)
        return self.step.head.back(self.stored) * weights[:, None]
