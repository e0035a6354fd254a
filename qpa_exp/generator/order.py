"""A random order of the generated parameters."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


class RandomOrder(nn.Module):
    """Puts ``m`` numbers into an order that is drawn once, from torch's global stream.

    Attributes:
        places: where each number of the result comes from.
        back: where each number goes; behind them, zeros for numbers that are not read.
    """

    places: Int[Tensor, " m"]
    back: Int[Tensor, " at_least_m"]

    def __init__(self, m: int) -> None:
        super().__init__()
        places = torch.randperm(m)
        self.register_buffer("places", places.int(), persistent=False)
        self.register_buffer("back", torch.argsort(places).int(), persistent=False)

    def forward(self, numbers: Float[Tensor, " at_least_m"]) -> Float[Tensor, " m"]:
        """The first m of ``numbers`` in this order."""
        if len(self.back) < len(numbers):
            self.back = pad(self.back, (0, len(numbers) - len(self.back)))
        ordered: Tensor = _Ordered.apply(numbers, self.places, self.back)
        return ordered


class _Ordered(torch.autograd.Function):
    """Read in an order. The gradient is read in the opposite one: faster than being added up."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return numbers.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        found = grad.index_select(0, back)
        found[len(grad) :] = 0  # numbers that were not read
        return found, None, None
