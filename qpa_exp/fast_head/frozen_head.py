"""A frozen head: its weight as products take it, and what the model does to its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

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
