"""Methods that adapt the output head alone: the loss of one, by the shortest way there is.

The backbone is then frozen as a whole, and a token's hidden state is a constant. LoRA, DoRA and
what only changes the head's input (prefix, ffa) have formulas of their own in
:mod:`qpa_exp.fast_head.low_rank_loss`; any other method is run as PEFT has it and differentiated
by torch, a chunk of tokens at a time, so that the logits of a whole batch are never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from qpa_exp.adapters.adapted import AdaptedModel
from qpa_exp.adapters.methods._input_layer import InputLayer
from qpa_exp.fast_head.frozen_head import FinalLogits, FrozenHead
from qpa_exp.fast_head.low_rank_loss import LowRank, low_rank_loss, with_gradients
from qpa_exp.lm.losses import IGNORED

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk take in float32; torch holds a few times as much."""


def adapts_head_alone(model: AdaptedModel) -> bool:
    """Whether the output head is a linear layer, and all of the model that the method changes."""
    if model.peft_model.active_peft_config.is_prompt_learning:
        return False
    lm = model.language_model()
    head = lm.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer) or not _is_plain(head.get_base_layer()):
        return False
    within = set(nn.Module.modules(head))
    return not any(
        isinstance(module, BaseTunerLayer)
        or is_parametrized(module)
        or any(p.requires_grad for p in module.parameters(recurse=False))
        for module in lm.modules()
        if module not in within
    )


def _is_plain(layer: Any) -> bool:
    """Whether it is torch's linear layer and nothing derived from it, as quantisers' are."""
    return type(layer) is nn.Linear and layer.weight.is_floating_point()


class AdaptedHead:
    """The head of a model for which :func:`adapts_head_alone` holds.

    Args:
        model: the adapted language model.
        final: what it does to the head's output.
        low: a type of 16 bits for the products with the frozen head; None is the weight's own.
    """

    def __init__(
        self, model: AdaptedModel, final: FinalLogits, low: torch.dtype | None = None
    ) -> None:
        self.model, self.final, self.low = model, final, low
        self.layer: Any = model.language_model().get_output_embeddings()
        self._frozen: FrozenHead | None = None

    @property
    def frozen(self) -> FrozenHead:
        """The layer without the method; made anew where its weight has moved."""
        base = self.layer.get_base_layer()
        weight = base.weight.detach()
        if self._frozen is None or self._frozen.weight.data_ptr() != weight.data_ptr():
            self._frozen = FrozenHead(weight, base.bias, self.final, self.low)
        return self._frozen

    def loss(
        self,
        hidden: Float[Tensor, "rows tokens k"],
        targets: Int[Tensor, "rows tokens"],
        weights: Float[Tensor, "rows tokens"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
        """The weighted sum of the cross entropies of the model's logits, as the model is now.

        Args:
            hidden: what enters the head, for positions from 0; a constant.
            targets: the token that follows each; ``IGNORED`` where there is none.
            weights: of each prediction in the loss.

        Returns:
            The loss, which has gradients where the method is trained, and (rows, tokens) nats.
        """
        layer, update = self.layer, None
        names = [] if layer.disable_adapters else layer.active_adapters
        with torch.autocast(hidden.device.type, enabled=False):
            if names and isinstance(layer, InputLayer):
                hidden = layer.change(hidden, *names)
            elif names:
                update = self._low_rank(hidden, *names) if type(layer) is LoraLinear else None
                if update is None:
                    return self._as_peft_has_it(hidden, targets, weights)
        flat = hidden.flatten(0, 1), targets.flatten(), weights.flatten()
        loss, nats = low_rank_loss(self.frozen, *flat, update)
        return loss, nats.view(targets.shape)

    def _low_rank(self, hidden: Tensor, name: str) -> LowRank | None:
        """LoRA's or DoRA's tensors; None for another variant, or what has no formula here."""
        layer = self.layer
        a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        # A generated layer has a class made from Linear.
        plain = all(isinstance(x, nn.Linear) and x.bias is None for x in (a, b))
        if layer.merged or not plain or not isinstance(dropout, nn.Dropout | nn.Identity):
            return None
        drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
        variant = layer.lora_variant.get(name)
        if variant is None:
            given = dropout(hidden.to(a.weight.dtype)).flatten(0, 1) if drops else None
            return LowRank(a.weight, b.weight, layer.scaling[name], None, given)
        dora = isinstance(variant, DoraLinearVariant) or variant is DoraLinearVariant
        if not dora or drops:  # with dropout, DoRA drops inputs of the frozen product too
            return None
        magnitude = layer.lora_magnitude_vector[name].weight
        return LowRank(a.weight, b.weight, layer.scaling[name], magnitude)

    def _as_peft_has_it(
        self, hidden: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        vocab, trained = self.layer.get_base_layer().out_features, self.model.trained_tensors()
        return any_head_loss(
            lambda part: self.final(self.layer(part)), trained, hidden, targets, weights, vocab
        )


def any_head_loss(
    head: Callable[[Tensor], Tensor],
    trained: Sequence[Tensor],
    hidden: Float[Tensor, "rows tokens k"],
    targets: Int[Tensor, "rows tokens"],
    weights: Float[Tensor, "rows tokens"],
    vocab: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
    """The weighted sum of the cross entropies of the head's logits, in float32.

    Args:
        head: gives (rows, tokens, vocab) logits for any rectangle of the hidden states.
        trained: the tensors within ``head`` that gradients go to. They are leaves, or what the
            head itself is made from.
        hidden: constants.
        targets: the tokens to predict; ``IGNORED`` where there is none.
        weights: of each prediction in the loss.
        vocab: the head's outputs.
        chunk_bytes: the most that a chunk's logits take; one token is always taken.

    Returns:
        The loss, and the nats of each prediction, which have no gradient: 0 without a target.
    """
    sought = [t for t in trained if t.requires_grad] if torch.is_grad_enabled() else []
    gradients = [torch.zeros_like(t) for t in sought]
    nats = torch.zeros(targets.shape, device=hidden.device)
    for part in rectangles(*targets.shape, max(1, chunk_bytes // (4 * vocab))):
        with torch.set_grad_enabled(bool(sought)):
            logits = head(hidden[part].detach()).flatten(0, 1).float()
            at = targets[part].flatten()
            found = F.cross_entropy(logits, at, ignore_index=IGNORED, reduction="none")
            loss = found @ weights[part].flatten()
        nats[part] = found.detach().view_as(nats[part])
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, sought, allow_unused=True)
            for total, slope in zip(gradients, slopes, strict=True):
                if slope is not None:
                    total += slope
    return with_gradients((nats * weights).sum(), sought, gradients), nats


def rectangles(rows: int, tokens: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut (rows, tokens) into rectangles of at most ``most``: whole rows, or parts of one."""
    wide = max(1, min(tokens, most))
    tall = max(1, most // wide)
    for row in range(0, rows, tall):
        for token in range(0, tokens, wide):
            yield slice(row, min(row + tall, rows)), slice(token, min(token + wide, tokens))
