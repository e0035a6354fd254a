"""The passes over a chunk's logits: in torch's operations, and for a CPU compiled by Numba.

Torch's read and write the logits six times, a block of the vocabulary at a time; compiled it is
twice, and what is added up in between stays in the nearest cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from qpa_exp.machine import compiled, compiled_in_order, share_out

_MOST_COMPILED = 6
"""The largest rank whose products the compiled passes do; torch is faster at those of more."""

_WORTH_THREADS = 2**18
"""Logits from which threads are started."""

_SHARED_ROWS, _SUMMED_ROWS = 1024, 64
"""Rows of the vocabulary that go to one thread together, and that are summed in float32.

A float32 that grows over 256,000 words loses what is small beside it: up to 4.5e-4 of the loss.
So sums of a few rows are added up in float64, in an order that no number of threads changes.
"""

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
        """Return the logit of one target for each token, from its product.

        And the soft cap's slope.
        """
        share = 1.0 if self.share is None else self.share[targets]
        z = product * share + (self.left[targets] * self.right.T).sum(1)
        if self.soft_cap is None:
            return z, torch.ones_like(z)
        bent = torch.tanh(z / self.soft_cap)
        return bent * self.soft_cap, 1 - bent.square()

    def apply(
        self, block: Float[Tensor, "rows tokens"], rows: slice, shift: Float[Tensor, " tokens"]
    ) -> Float[Tensor, "rows tokens"] | None:
        """Make of a block of the product the logits less ``shift``, in place.

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
    """Return the largest logit of each token, of the first so many blocks; None = of all."""
    found = torch.full((stored.shape[1],), -torch.inf, device=stored.device)
    for rows in list(_blocks(stored))[:blocks]:
        block = stored[rows].to(torch.float32, copy=True)
        terms.apply(block, rows, torch.zeros_like(found))
        found = torch.maximum(found, block.amax(0))
    return found


def can_compile(device: torch.device, dtype: torch.dtype, rank: int) -> bool:
    """Whether the compiled passes take logits there, of this type, with an update of this rank."""
    return (
        device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and rank <= _MOST_COMPILED
    )


def exponentiate(
    stored: Shaped[Tensor, "vocab tokens"],
    stored_raw: Shaped[Tensor, "vocab tokens"] | None,
    terms: Terms,
    shift: Float[Tensor, " tokens"],
    b: Float[Tensor, "vocab r"],
    *,
    keep: bool = True,
    fast: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "r tokens"]]:
    """Give the product becomes ``exp(logits - shift)``, in place, times the slope of the soft cap.

    Args:
        stored: the product with the head.
        stored_raw: is given the same, times that product; None = not wanted.
        terms: how logits come from the product.
        shift: of each token.
        b: what the result is multiplied with, before it is rounded to the type stored.
        keep: whether the result is wanted, and not the sums alone.
        fast: by the compiled pass.

    Returns:
        In float64 the exponentials' sums over the vocabulary, without the slope, and
        ``b^T`` times the result.
    """
    if fast:
        return _exponentiate_compiled(stored, stored_raw, terms, shift, b, keep)
    sums = torch.zeros(shift.shape, dtype=torch.float64, device=stored.device)
    towards = sums.new_zeros(b.shape[1], len(shift))
    for rows in _blocks(stored):
        block = stored[rows].float()  # itself, or a copy where it has another type
        product = None if stored_raw is None else block.clone()
        square = terms.apply(block, rows, shift)
        if block.device.type == "cpu":
            functional.threshold(block, LOWEST, -torch.inf, inplace=True)
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


def _exponentiate_compiled(
    stored: Tensor, stored_raw: Tensor | None, terms: Terms, shift: Tensor, b: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    at, raw = _bits(stored), _bits(stored[:0] if stored_raw is None else stored_raw)
    share = shift[:0] if terms.share is None else terms.share
    left, right, factor, away, spread = map(_numpy, (terms.left, terms.right, share, shift, b))
    cap = np.float32(terms.soft_cap or 0)
    parts = -(-len(at) // _SHARED_ROWS)
    sums = np.zeros((parts, 1 + spread.shape[1], len(away)))
    share_out(
        lambda first, last: _exponentiate(
            at, raw, left, right, factor, cap, away, spread, keep, sums, first, last
        ),
        parts,
        threads=at.size >= _WORTH_THREADS,
    )
    with np.errstate(invalid="ignore"):  # what is no number stays none, as in torch: no warning
        found = torch.from_numpy(sums.sum(0))
    return found[0], found[1:]


def add_product(
    stored: Shaped[Tensor, "vocab tokens"],
    columns: Float[Tensor, "tokens n"],
    to: Float[Tensor, "vocab n"],
    *,
    fast: bool = False,
) -> None:
    """Add ``stored`` times a few columns to ``to``; ``fast``: by the compiled pass."""
    if not fast and stored.dtype == torch.float32:
        to.addmm_(stored, columns)
        return
    if not fast:
        for rows in _blocks(stored):
            to[rows].addmm_(stored[rows].float(), columns)
        return
    at, factors, out = _bits(stored), _numpy(columns.T), to.numpy()
    share_out(
        lambda first, last: _add_product(at, factors, out, first, last),
        len(at),
        threads=at.size >= _WORTH_THREADS,
    )


def multiply_back(
    stored: Shaped[Tensor, "vocab tokens"], b: Float[Tensor, "vocab r"]
) -> Float[Tensor, "tokens r"]:
    """Return the transposed ``stored`` times b, in float32."""
    if stored.dtype == torch.float32:
        return stored.T @ b
    found = b.new_zeros(stored.shape[1], b.shape[1])
    for rows in _blocks(stored):
        found.addmm_(stored[rows].float().T, b[rows])
    return found


def _blocks(stored: Tensor) -> Iterator[slice]:
    vocab, tokens = stored.shape
    size = max(1, BLOCKS.get(stored.device.type, _BLOCK_ELSEWHERE) // max(1, tokens))
    for begin in range(0, vocab, size):
        yield slice(begin, min(begin + size, vocab))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _bits(stored: Tensor) -> np.ndarray:
    """Whole rows, those that are padded with their padding, so that they lie side by side.

    As whole numbers: NumPy has no bfloat16.
    """
    rows = stored.detach().as_strided((len(stored), stored.stride(0)), (stored.stride(0), 1))
    return rows.view(torch.int16 if rows.dtype == torch.bfloat16 else torch.int32).numpy()


# --- compiled ---------------------------------------------------------------------------------


@compiled
def _exponentiate(
    stored: Any, stored_raw: Any, left: Any, right: Any, share: Any, cap: Any,
    shift: Any, b: Any, keep: Any, sums: Any, first: Any, last: Any,
) -> None:  # fmt: skip
    """Row by row; each step is a loop of its own, so that what is the same step rounds the same.

    ``sums[part]`` is given what the part's rows add up to: the exponentials, and b times these.
    """
    n_tokens = shift.shape[0]
    row, raw = np.empty(n_tokens, np.float32), np.empty(n_tokens, np.float32)
    slope = np.empty(n_tokens, np.float32)
    few = np.empty((sums.shape[1], n_tokens), np.float32)
    for part in range(first, last):
        end = min((part + 1) * _SHARED_ROWS, stored.shape[0])
        for begin in range(part * _SHARED_ROWS, end, _SUMMED_ROWS):
            few[:] = 0
            for v in range(begin, min(begin + _SUMMED_ROWS, end)):
                _read(stored[v], row)
                if stored_raw.shape[0] > 0:
                    for t in range(n_tokens):
                        raw[t] = row[t]
                if share.shape[0] > 0:
                    for t in range(n_tokens):
                        row[t] *= share[v]
                _add_rows(left[v], right, row)
                if cap > 0:
                    _bend(row, slope, cap)
                for t in range(n_tokens):
                    row[t] = _exp(row[t] - shift[t])
                    few[0, t] += row[t]
                if not keep:
                    continue
                if cap > 0:
                    for t in range(n_tokens):
                        row[t] *= slope[t]
                _spread_row(b[v], row, few[1:])
                _write(row, stored[v])
                if stored_raw.shape[0] > 0:
                    for t in range(n_tokens):
                        raw[t] *= row[t]
                    _write(raw, stored_raw[v])
            for j in range(few.shape[0]):
                for t in range(n_tokens):
                    sums[part, j, t] += few[j, t]


@compiled
def _bend(row: Any, slope: Any, cap: Any) -> None:
    """Row becomes cap tanh(row / cap)."""
    one = np.float32(1)  # a plain 1 would make it all float64
    per_cap = one / cap
    for t in range(row.shape[0]):
        bent = _tanh(row[t] * per_cap)
        slope[t] = one - bent * bent
        row[t] = cap * bent


@compiled
def _add_rows(factors: Any, rows: Any, to: Any) -> None:
    """Add factors @ rows to a row, four at a time."""
    n = factors.shape[0]
    for j in range(0, n - n % 4, 4):
        a, b, c, d = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
        p, q, r, s = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for t in range(to.shape[0]):
            to[t] += a * p[t] + b * q[t] + c * r[t] + d * s[t]
    for j in range(n - n % 4, n):
        a, p = factors[j], rows[j]
        for t in range(to.shape[0]):
            to[t] += a * p[t]


@compiled
def _spread_row(factors: Any, row: Any, to: Any) -> None:
    """Add the outer product of factors and row to rows, four at a time."""
    n = factors.shape[0]
    for j in range(0, n - n % 4, 4):
        a, b, c, d = factors[j], factors[j + 1], factors[j + 2], factors[j + 3]
        p, q, r, s = to[j], to[j + 1], to[j + 2], to[j + 3]
        for t in range(row.shape[0]):
            x = row[t]
            p[t] += a * x
            q[t] += b * x
            r[t] += c * x
            s[t] += d * x
    for j in range(n - n % 4, n):
        a, p = factors[j], to[j]
        for t in range(row.shape[0]):
            p[t] += a * row[t]


@compiled
def _add_product(stored: Any, rows: Any, to: Any, first: Any, last: Any) -> None:
    n = rows.shape[0]
    zero = np.float32(0)
    row = np.empty(rows.shape[1], np.float32)
    for v in range(first, last):
        _read(stored[v], row)
        for j in range(0, n - n % 4, 4):
            p, q, r, s = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
            a, b, c, d = zero, zero, zero, zero
            for t in range(row.shape[0]):
                a += row[t] * p[t]
                b += row[t] * q[t]
                c += row[t] * r[t]
                d += row[t] * s[t]
            to[v, j] += a
            to[v, j + 1] += b
            to[v, j + 2] += c
            to[v, j + 3] += d
        for j in range(n - n % 4, n):
            p, a = rows[j], zero
            for t in range(row.shape[0]):
                a += row[t] * p[t]
            to[v, j] += a


LOWEST = -64.0
"""Whose exponential, 1.6e-28, and all below are taken for 0: beside a sum of at least 1 they are.

Of a confident model most are so small, and a processor is many times slower below 1.2e-38.
"""

_ZERO, _LOWEST, _HIGHEST = np.float32(0), np.float32(LOWEST), np.float32(88)
_PER_LN_2 = np.float32(1.4426950408889634)
# ln 2 in two parts, the first of few digits, so that its multiples are exact.
_LN_2, _LN_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
_WHOLE = np.float32(1.5 * 2**23)
"""Added to a number it leaves no room for a fraction: the sum's last bits are a whole number."""
# 1 / n!
_C0, _C2, _C3, _C4 = np.float32(1), np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@compiled_in_order
def _exp(z: Any) -> Any:
    """e^z to 2e-7: e^z = 2^n e^f with |f| < ln 2 / 2, and that by Taylor's series.

    What overflows is 1.6e38, below ``LOWEST`` it is 0; NaN stays NaN.
    """
    vanishes = z < _LOWEST
    z = _HIGHEST if z > _HIGHEST else z
    z = _LOWEST if vanishes else z
    shifted = z * _PER_LN_2 + _WHOLE
    n = shifted - _WHOLE
    f = (z - n * _LN_2) - n * _LN_2_REST
    tail = ((((_C7 * f + _C6) * f + _C5) * f + _C4) * f + _C3) * f + _C2
    two_to_n = np.int32((np.float32(shifted).view(np.int32) + 127) << 23).view(np.float32)
    return _ZERO if vanishes else (tail * (f * f) + f + _C0) * two_to_n


# tanh x = x + x^3 P(x^2) near 0 (Cephes); elsewhere from e^2x, which would lose digits there.
_NEAR, _TWO = np.float32(0.625), np.float32(2)
_P0, _P1 = np.float32(-3.33332819422e-1), np.float32(1.33314422036e-1)
_P2, _P3, _P4 = (np.float32(p) for p in (-5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3))


@compiled_in_order
def _tanh(x: Any) -> Any:
    """Tanh x to 2e-7."""
    y = x * x
    near = ((((_P4 * y + _P3) * y + _P2) * y + _P1) * y + _P0) * y * x + x
    far = _C0 - _TWO / (_exp(_TWO * x) + _C0)
    return near if abs(x) < _NEAR else far


@compiled
def _read(stored: Any, row: Any) -> None:
    """Read a row of float32's bits, or of bfloat16's, whose lower half is zero."""
    missing = 32 - 8 * stored.itemsize
    for t in range(row.shape[0]):
        row[t] = np.int32(np.int32(stored[t]) << missing).view(np.float32)


@compiled
def _write(row: Any, stored: Any) -> None:
    """Write a row's bits, or those of the nearest bfloat16, half even.

    A NaN may become an infinity; the sums have it as NaN.
    """
    if stored.itemsize == 4:
        for t in range(row.shape[0]):
            stored[t] = np.float32(row[t]).view(np.int32)
        return
    for t in range(row.shape[0]):
        bits = np.uint32(np.float32(row[t]).view(np.int32))
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        stored[t] = np.int16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
