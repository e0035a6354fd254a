"""What enters a language model's head, for any family, and what the model does after it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qpa_exp.fast_head.head import FinalLogits
from qpa_exp.fast_head.packing import Packing


class _Reached(Exception):
    """Ends a forward pass where the head begins."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def hidden_states(
    model: Any,
    input_ids: Int[Tensor, "rows tokens"],
    attention_mask: Int[Tensor, "rows tokens"],
    packing: Packing | None = None,
) -> Float[Tensor, "rows tokens k"]:
    """What enters the output head: after the final norm, and any projection there is.

    The head itself is not computed. ``model`` is any of transformers' causal language models;
    ``packing`` makes the pass faster, and keeps what that takes for the next one.
    """

    def stop(_: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
        raise _Reached(given[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        with nullcontext() if packing is None else packing.used_by(model):
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} did not call its output head.")


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
