"""A frozen model's layers as oneDNN multiplies them fastest, for passes without gradients.

Products with a weight in the order of oneDNN's own blocks, which compilers of models use, took four
fifths of the time here, and GPT-2's activation is computed as the product leaves the registers.
The blocks are a second copy of the weights, kept for as long as the :class:`Packing` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeGuard
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from qpa_exp.machine import free_memory

_FEWEST_INPUTS = 512
"""With fewer, a product is as fast without."""

_TOKENS = 512
"""For how many the blocks are chosen; they do for any number."""

_SHARE_OF_FREE = 1 / 4
"""Of the free memory, the most that the next copy may take."""

Layer = nn.Linear | Conv1D


class _Packed(NamedTuple):
    """A weight in blocks, and which values it was made from."""

    blocks: Tensor
    source: tuple[int, int]


class Packing:
    """The packed weights of the models that it was used by: those whose layers it may pack.

    It packs float32 weights that are not trained, on a CPU, while there is memory for the copies.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Within, ``model`` computes with packed weights; afterwards it is as it was."""
        ways = self._ways(model)
        for module, forward in ways.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in ways:
                del module.forward

    def _ways(self, model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """What modules do in place of their own forward pass."""
        ways: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        own = [module for module in model.modules() if "forward" not in vars(module)]
        for module in own:
            if _is_layer(module) and self._takes(module):
                ways[module] = partial(self._multiply, module)
            elif isinstance(module, NewGELUActivation):  # eight operations; torch has it as one
                ways[module] = partial(gelu, approximate="tanh")
        for block in own:
            if (
                isinstance(block, GPT2MLP)
                and isinstance(block.act, NewGELUActivation)
                and {block.c_fc, block.act} <= ways.keys()
            ):
                ways[block.c_fc] = partial(self._multiply, block.c_fc, then=("gelu", "tanh"))
                ways[block.act] = _unchanged
        return ways

    def _takes(self, layer: Layer) -> bool:
        """Whether the layer's products gain by it, and there is room for its copy."""
        if not _possible(layer.weight) or _rows(layer).shape[1] < _FEWEST_INPUTS:
            return False
        return layer in self._kept or layer.weight.nbytes <= _SHARE_OF_FREE * free_memory()

    def _multiply(
        self,
        layer: Layer,
        x: Float[Tensor, "*batch k"],
        then: tuple[str, str] = ("none", ""),
    ) -> Float[Tensor, "*batch n"]:
        """What the layer gives for ``x``, and its activation's name and algorithm, if any."""
        activation, algorithm = then
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._blocks(layer), layer.bias, activation, [], algorithm
        )
        return found

    def _blocks(self, layer: Layer) -> Tensor:
        """The layer's weight in blocks, made anew where the weight is another since."""
        source = (layer.weight.data_ptr(), layer.weight._version)
        kept = self._kept.get(layer)
        if kept is None or kept.source != source:
            kept = _Packed(_pack(_rows(layer).detach().contiguous()), source)
            self._kept[layer] = kept
        return kept.blocks


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Whether it is one of these and nothing derived from them: PEFT's and quantisers' are."""
    return type(module) in (nn.Linear, Conv1D)


def _rows(layer: Layer) -> Float[Tensor, "n k"]:
    """The weight as torch writes it; GPT-2 has it the other way round."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _pack(rows: Float[Tensor, "n k"]) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(rows, _TOKENS)
    return blocks


def _unchanged(x: Tensor) -> Tensor:
    return x


def _possible(weight: Tensor) -> bool:
    """Whether there is such a product for this weight, and no gradient or autocast to mind."""
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not (weight.requires_grad or weight.is_inference())
        and not torch.is_autocast_enabled("cpu")
    )
