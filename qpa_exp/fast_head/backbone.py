"""What enters a language model's head, for any family, and what the model does after it."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NoReturn

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor, nn

from qpa_exp.fast_head.frozen_head import FinalLogits
from qpa_exp.fast_head.packing import Packing

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
