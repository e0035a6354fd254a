"""What a PEFT method makes of the output head, read off its own layer's forward pass.

Most methods add to the frozen product others of the same kind, whose factors they make from a few
numbers: ``share (W h) + B u + bias``. The layer is called once, with all hidden states, and
products as wide as the vocabulary are written down in place of being computed. Their factors are
tensors of autograd's graph, so that a loss that gives those their gradients trains the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qpa_exp.fast_head.low_rank_loss import Update

Factor = float | Tensor
"""A number, or one for each word of the vocabulary."""


class _NoFormulaError(Exception):
    """The layer does something else with its logits."""


@dataclass(frozen=True)
class _Product:
    """``factor (u b^T)``: u is (..., r), b (vocab, r)."""

    u: Tensor
    b: Tensor
    factor: Factor = 1.0


class _Logits(Tensor):
    """(..., vocab) numbers that take no memory: the sum of what is written down beside them."""

    products: tuple[_Product, ...]
    bias: Tensor | None

    @staticmethod
    def of(
        like: Tensor, shape: torch.Size, products: tuple[_Product, ...], bias: Tensor | None
    ) -> _Logits:
        made = like.new_zeros(()).expand(shape).as_subclass(_Logits)
        made.products, made.bias = products, bias
        return made


class _Writing(TorchFunctionMode):
    """Within, what is as wide as the vocabulary, and made from three axes, is written down."""

    def __init__(self, lead: torch.Size, vocab: int) -> None:
        super().__init__()
        self.lead, self.vocab = lead, vocab

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if any(isinstance(value, _Logits) for value in (*args, *named.values())):
            return self._follow(func, *args, **named)
        made = None
        if func is F.linear:
            made = self._product(*args, **named)
        elif func in _MATMULS and not named:
            x, other = args if func is not Tensor.__rmatmul__ else args[::-1]
            made = self._product(x, other.T) if other.dim() == 2 else None
        return func(*args, **named) if made is None else made

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Logits | None:
        if input.dim() != 3 or input.shape[:-1] != self.lead or weight.shape[0] != self.vocab:
            return None
        shape = torch.Size((*self.lead, self.vocab))
        return _Logits.of(input, shape, (_Product(input, weight),), bias)

    def _follow(self, func: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Return what an operation makes of logits; some of their sum."""
        name = func.__name__
        if name in _ASKED:
            return func(*args, **named)
        if name in _KEPT and isinstance(args[0], _Logits):
            return args[0]
        if func is torch.zeros_like:
            return _Logits.of(args[0], args[0].shape, (), None)
        if name in _RESHAPED and isinstance(args[0], _Logits) and not named:
            shape = func(*args).shape
            if shape and shape[-1] == self.vocab:
                return _Logits.of(args[0], shape, args[0].products, args[0].bias)
        if name.endswith("_") and name[:-1] in _OPERATIONS and isinstance(args[0], _Logits):
            changed = self._operate(name[:-1], *args, **named)
            args[0].products, args[0].bias = changed.products, changed.bias
            return args[0]
        return self._operate(name, *args, **named)

    def _operate(self, name: str, *args: Any, **named: Any) -> _Logits:
        if name not in _OPERATIONS or len(args) != 2 or named:
            raise _NoFormulaError(name)
        one, other = args
        if name == "add":
            return self._sum(one, other)
        if name in ("sub", "__rsub__"):
            one, other = (one, other) if name == "sub" else (other, one)
            return self._sum(
                one, self._times(other, -1.0) if isinstance(other, _Logits) else -other
            )
        if name == "mul":
            one, other = (one, other) if isinstance(one, _Logits) else (other, one)
        if isinstance(other, _Logits):
            raise _NoFormulaError("logits times logits")
        return self._times(one, other if name == "mul" else 1 / other)

    def _times(self, logits: Any, other: Any) -> _Logits:
        if not isinstance(logits, _Logits):
            raise _NoFormulaError("something over logits")
        factor = self._factor(other)
        products = tuple(replace(p, factor=p.factor * factor) for p in logits.products)
        bias = None if logits.bias is None else logits.bias * factor
        return _Logits.of(logits, logits.shape, products, bias)

    def _sum(self, one: Any, other: Any) -> _Logits:
        if isinstance(one, _Logits) and isinstance(other, _Logits):
            if one.shape != other.shape:
                raise _NoFormulaError("logits of two shapes")
            biases = [b for b in (one.bias, other.bias) if b is not None]
            bias = sum(biases[1:], biases[0]) if biases else None
            return _Logits.of(one, one.shape, one.products + other.products, bias)
        logits, added = (one, other) if isinstance(one, _Logits) else (other, one)
        bias = torch.as_tensor(self._factor(added), device=logits.device).expand(self.vocab)
        if logits.bias is not None:
            bias = logits.bias + bias
        return _Logits.of(logits, logits.shape, logits.products, bias)

    def _factor(self, other: Any) -> Factor:
        """Return a number, or a vector over the vocabulary."""
        if isinstance(other, int | float):
            return float(other)
        if isinstance(other, Tensor) and other.numel() == 1:
            return other.reshape(()).expand(self.vocab)
        if isinstance(other, Tensor) and other.shape[-1:].numel() == other.numel() == self.vocab:
            return other.reshape(-1)
        raise _NoFormulaError("logits and something as large as they are")


_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__)
_ASKED = frozenset({"__get__", "dim", "size", "numel", "is_floating_point", "is_complex"})
_KEPT = frozenset({"to", "float", "type", "clone", "contiguous", "bfloat16", "half", "type_as"})
_RESHAPED = frozenset({"reshape", "view", "unsqueeze", "squeeze", "flatten"})
_OPERATIONS = frozenset({"add", "sub", "__rsub__", "mul", "div"})


def find_update(
    layer: nn.Module,
    base: nn.Linear,
    hidden: Float[Tensor, "rows tokens k"],
    *,
    keep_frozen: bool = False,
) -> Update | None:
    """Return what a layer makes of the frozen head within it.

    Args:
        layer: PEFT's layer; any module that gives logits for hidden states, token by token.
        base: the frozen layer that it has in it.
        hidden: what enters it.
        keep_frozen: whether a changed weight is the frozen one, and a product with the difference.

    Returns:
        Logits as :func:`low_rank_loss` takes them; None where they are no such sum.

    Examples:
        >>> layer = torch.nn.Linear(4, 9).requires_grad_(False)
        >>> update = find_update(layer, layer, torch.ones(1, 2, 4))
        >>> update.hidden.shape, update.bias.shape, update.u
        (torch.Size([2, 4]), torch.Size([9]), None)
    """
    vocab = len(base.weight)
    try:
        with _Writing(hidden.shape[:-1], vocab):
            logits = layer(hidden)
    except _NoFormulaError:
        return None
    rows = math.prod(hidden.shape[:-1])
    if not (isinstance(logits, _Logits) and logits.numel() == rows * vocab and logits.products):
        return None
    if any(math.prod(p.u.shape[:-1]) != rows for p in logits.products):
        return None
    return _gather(logits, base.weight, keep_frozen)


def _gather(logits: _Logits, weight: Tensor, keep_frozen: bool) -> Update:
    """One product with the frozen weight, if there is any, and all the others in one."""
    frozen, others = _merged(logits.products, weight)
    if frozen is None and keep_frozen and others[0].b.shape == weight.shape:
        frozen = replace(others[0], b=weight)
        others[0] = replace(others[0], b=others[0].b - weight)
    hidden = share = None
    if frozen is not None:
        hidden = frozen.u.flatten(0, -2)
        if isinstance(frozen.factor, Tensor):
            share = frozen.factor
        elif frozen.factor != 1.0:
            hidden = hidden * frozen.factor
    us = [_scaled(p.u.flatten(0, -2).float(), p.factor, of_rows=False) for p in others]
    bs = [_scaled(p.b.float(), p.factor, of_rows=True) for p in others]
    bias = logits.bias
    if bias is not None and bias.requires_grad:  # one more product, of ones
        us.append(bias.new_ones(math.prod(logits.shape[:-1]), 1, dtype=torch.float32))
        bs.append(bias.float()[:, None])
        bias = None
    return Update(hidden, _joined(us), _joined(bs), share, bias)


def _merged(
    products: tuple[_Product, ...], weight: Tensor
) -> tuple[_Product | None, list[_Product]]:
    """Return the frozen weight's product with one input, and the others.

    Not what takes itself away.
    """
    frozen: _Product | None = None
    others: list[_Product] = []
    for p in products:
        is_frozen = _place(p.b) == _place(weight)
        if is_frozen and (frozen is None or frozen.u is p.u):
            before = 0.0 if frozen is None else frozen.factor
            frozen = replace(p, factor=before + p.factor)
        else:
            others.append(p)
    if (
        frozen is not None
        and not isinstance(frozen.factor, Tensor)
        and frozen.factor == 0
        and others
    ):
        frozen = None
    return frozen, others


def _scaled(part: Tensor, factor: Factor, *, of_rows: bool) -> Tensor:
    """Scale a factor: a number goes with u, which is small, and a vector with the rows of b."""
    if isinstance(factor, Tensor):
        return part * factor[:, None] if of_rows else part
    return part if of_rows or factor == 1.0 else part * factor


def _joined(parts: list[Tensor]) -> Tensor | None:
    return None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
