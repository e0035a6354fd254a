"""What enters a language model's head, for any family, and what the model does after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, NoReturn, TypeGuard
from weakref import WeakKeyDictionary

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from qpa_exp.fast_head.frozen_head import FinalLogits
from qpa_exp.machine import free_memory

_HASHED_AT_A_TIME = 64 * 2**20


class _HeadReached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Backbone:
    """A language model up to its output head, frozen.

    Args:
        model: any of transformers' causal language models.
        autocast: the type that it computes in where that is not its weights' own.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None = None) -> None:
        self.model, self.autocast = model, autocast
        self._packing = Packing()

    @torch.no_grad()
    def hidden(
        self, input_ids: Int[Tensor, "rows t"], attention_mask: Int[Tensor, "rows t"]
    ) -> Float[Tensor, "rows t k"]:
        """What enters the head, on the model's device: after the last norm and any projection."""

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
            raise _HeadReached(given[0])

        model, device = self.model, self.model.device
        low = nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
        handle = model.get_output_embeddings().register_forward_pre_hook(stop)
        try:
            with low, self._packing.used_by(model):
                mask = attention_mask.to(device)
                model(input_ids=input_ids.to(device), attention_mask=mask, use_cache=False)
        except _HeadReached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise RuntimeError(f"{type(model).__name__} did not call its output head.")

    @cached_property
    def identity(self) -> str:
        """A digest of the model without its head: its class, its config and its weights.

        What a method adds to the head changes nothing, so all methods share what is computed.
        """
        head = self.model.get_output_embeddings()
        of_head = next(name for name, module in self.model.named_modules() if module is head) + "."
        sha = hashlib.sha256(type(self.model).__name__.encode())
        config = self.model.config.to_dict()
        for key in ("_name_or_path", "transformers_version"):  # where it came from changes nothing
            config.pop(key, None)
        sha.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name.startswith(of_head):
                continue
            if isinstance(tensor, Tensor):
                sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
                sha.update(checksum(tensor.detach().cpu()).encode())
            else:  # what some quantisers add
                sha.update(f"{name} {tensor!r} ".encode())
        return sha.hexdigest()


def checksum(tensor: Tensor) -> str:
    """Of a tensor's bytes."""
    digest = xxhash.xxh3_64()
    if tensor.numel():
        for part in tensor.contiguous().flatten().view(torch.uint8).split(_HASHED_AT_A_TIME):
            digest.update(part.numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def find_final_logits(model: Any, input_ids: Int[Tensor, "rows tokens"]) -> FinalLogits | None:
    """What the model does to its head's output, seen in what it gives for a few tokens.

    Returns:
        The scale and soft cap that turn the head's output into the model's logits; None where
        there are none that do, or the head is not called once for all tokens.
    """
    head = model.get_output_embeddings()
    if head is None:
        return None
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, z: seen.append(z))
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits.double()
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].shape != logits.shape:
        return None
    z = seen[0].double()
    # 16 bits hold the head's output and the logits to about 1 in 200.
    tolerance = (1e-5 if seen[0].dtype.itemsize > 2 else 2e-2) * float(logits.abs().max())
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    for soft_cap in (None, cap):
        uncapped = logits
        if soft_cap is not None:
            uncapped = soft_cap * torch.atanh((logits / soft_cap).clamp(-1 + 1e-12, 1 - 1e-12))
        fitted = float((z * uncapped).sum() / z.square().sum())
        for scale in (1.0, fitted):
            final = FinalLogits(scale, soft_cap)
            if float((final(z) - logits).abs().max()) <= tolerance:
                return final
    return None


# --- layers as oneDNN multiplies them fastest ------------------------------------------------

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
    """The weights of a model's layers in the order of oneDNN's own blocks.

    Products with those, which compilers of models use, took four fifths of the time here, and
    GPT-2's activation is computed as the product leaves the registers. The blocks are a second
    copy, kept for as long as this is. It packs float32 weights that are not trained, on a CPU,
    while there is memory for the copies.

    Both operators are private: torch packs weights within ``torch.compile`` alone, which would
    take minutes for each model. ``Tensor._version`` is the one sign that a weight has changed.
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
