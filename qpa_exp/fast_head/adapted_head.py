"""Methods that adapt the output head alone: the loss of one, by the shortest way there is.

The backbone is then frozen as a whole, and a token's hidden state is a constant. LoRA, DoRA and
what only changes the head's input (prefix, ffa) have formulas of their own in
:mod:`qpa_exp.fast_head.head_loss`; any other method is run as PEFT has it, a chunk of tokens at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpa_exp.adapters import AdaptedModel
from qpa_exp.adapters.methods._input_layer import InputLayer
from qpa_exp.adapters.methods._prefix_layer import PrefixLayer
from qpa_exp.fast_head.chunked import chunked_loss
from qpa_exp.fast_head.head import FinalLogits, FrozenHead
from qpa_exp.fast_head.head_loss import HeadLoss, LowRank, head_loss


def adapts_head_alone(model: AdaptedModel) -> bool:
    """Whether the output head is the one layer of the language model that the method changes."""
    peft_model = model.peft_model
    if peft_model.active_peft_config.is_prompt_learning:
        return False
    head = language_model(model).get_output_embeddings()
    layers = [m for m in peft_model.modules() if isinstance(m, BaseTunerLayer)]
    return layers == [head] and not getattr(peft_model.active_peft_config, "modules_to_save", None)


@dataclass
class AdaptedHead:
    """The head of a model for which :func:`adapts_head_alone` holds.

    Attributes:
        model: the adapted language model.
        final: what it does to the head's output.
        low: a type of 16 bits for the products with the frozen head; None is the weight's own.
    """

    model: AdaptedModel
    final: FinalLogits
    low: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.layer: Any = language_model(self.model).get_output_embeddings()
        base = self.layer.get_base_layer()
        self.frozen: FrozenHead | None = None
        if type(base) is nn.Linear and base.weight.is_floating_point():
            self.frozen = FrozenHead(base.weight, base.bias, self.final, self.low)

    def loss(
        self,
        hidden: Float[Tensor, "rows tokens k"],
        targets: Int[Tensor, "rows tokens"],
        weights: Float[Tensor, "rows tokens"],
    ) -> HeadLoss:
        """The weighted sum of the cross entropies of the model's logits, as the model is now.

        Args:
            hidden: what enters the head, for positions from 0; a constant.
            targets: the token that follows each; ``IGNORED`` where there is none.
            weights: of each prediction in the loss.

        Returns:
            The loss, which has gradients where the method is trained, and (rows, tokens) nats.
        """
        if self.frozen is None:
            return self._in_general(hidden, targets, weights)
        layer, names = self.layer, self._active()
        if not names:
            return self._flat(hidden, targets, weights)
        if isinstance(layer, InputLayer):
            with torch.autocast(hidden.device.type, enabled=False):
                for name in names:
                    hidden = layer.change(hidden, name)
            return self._flat(hidden, targets, weights)
        if type(layer) is LoraLinear and len(names) == 1:
            update = self._low_rank(layer, names[0], hidden)
            if update is not None:
                return self._flat(hidden, targets, weights, update)
        return self._in_general(hidden, targets, weights)

    def _active(self) -> list[str]:
        """The adapters that act."""
        if self.layer.disable_adapters:
            return []
        have = self.layer._get_available_adapters()
        return [name for name in self.layer.active_adapters if name in have]

    def _flat(
        self, hidden: Tensor, targets: Tensor, weights: Tensor, update: LowRank | None = None
    ) -> HeadLoss:
        assert self.frozen is not None
        flat = (hidden.flatten(0, 1), targets.flatten(), weights.flatten())
        loss, nats = head_loss(self.frozen, *flat, update)
        return HeadLoss(loss, nats.view(targets.shape))

    def _low_rank(self, layer: Any, name: str, hidden: Tensor) -> LowRank | None:
        """LoRA's or DoRA's tensors; None for another variant, or what has no formula here."""
        a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        if layer.merged or layer.lora_bias.get(name) or not _is_plain(a, b):
            return None
        drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
        variant = layer.lora_variant.get(name)
        if variant is None:
            if not isinstance(dropout, nn.Dropout | nn.Identity):
                return None
            given = dropout(hidden.to(a.weight.dtype)).flatten(0, 1) if drops else None
            return LowRank(a.weight, b.weight, layer.scaling[name], None, given)
        # With dropout, DoRA drops inputs of the frozen product too.
        if not _is(variant, DoraLinearVariant) or drops:
            return None
        magnitude = layer.lora_magnitude_vector[name].weight
        return LowRank(a.weight, b.weight, layer.scaling[name], magnitude)

    def _in_general(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> HeadLoss:
        """The layer as PEFT computes it, in its own type."""

        def head(chunk: Tensor, begin: int) -> Tensor:
            if isinstance(self.layer, PrefixLayer):
                with self.layer.positions.window(begin, begin + chunk.shape[1], chunk.device):
                    return self.final(self.layer(chunk))
            return self.final(self.layer(chunk))

        vocab = self.layer.get_base_layer().out_features
        with torch.autocast(hidden.device.type, enabled=False):
            return chunked_loss(head, self._trained(), hidden, targets, weights, vocab)

    def _trained(self) -> list[Tensor]:
        """What gradients go to: the vector that the method's tensors are read from, or they."""
        if not torch.is_grad_enabled():
            return []
        return self.model.trained_tensors()


def language_model(model: AdaptedModel) -> Any:
    """The language model within: transformers' own, with the method's layers in it."""
    return model.language_model()


def _is_plain(*layers: Any) -> bool:
    """Whether these are linear layers without biases; a generated one has a class made from it."""
    return all(isinstance(x, nn.Linear) and x.bias is None for x in layers)


def _is(variant: Any, kind: type) -> bool:
    return isinstance(variant, kind) or variant is kind
