"""``task=causal_lm``: predict each token from those before it; the paper's task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qpa_exp.adapters.catalogue import virtual_tokens
from qpa_exp.config import Config
from qpa_exp.data.corpus import CORPORA
from qpa_exp.errors import InputError
from qpa_exp.task import Measured, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from qpa_exp.adapters.qpa_model import AdaptedModel
    from qpa_exp.data.datamodule import Batch, TextSize
    from qpa_exp.lm.losses import TokenLosses


class CausalLM(Task):
    """Language modelling.

    Under ``data.layout=lines`` the loss is the paper's, a mean over all positions, padding
    included; else it is the mean over the tokens that have a label.
    """

    label = "language modelling"
    auto_class = "AutoModelForCausalLM"
    peft_task_type = "CAUSAL_LM"
    metrics = (
        Metric("perplexity", "perplexity (real tokens)"),
        Metric("perplexity_padded", "perplexity (padded lines, the paper's)"),
        Metric("bits_per_byte", "bits a byte of the text", restates="perplexity"),
        Metric("word_perplexity", "perplexity a word of the text", restates="perplexity"),
    )
    measures = ("text", "padded")
    writes_text = True

    def token_losses(self, model: AdaptedModel, batch: Batch) -> TokenLosses:
        """Return the loss of every prediction of a batch."""
        from qpa_exp.lm.losses import token_losses

        ids = batch["input_ids"]
        with self.stopwatch.section("backbone", ids.device):
            logits = model(input_ids=ids, use_cache=False, **attended(batch)).logits
            text = logits[:, -ids.shape[1] :]  # some methods put virtual tokens before it
            return token_losses(text, ids, batch["labels"])

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Nats a token, or in padded lines nats a position."""
        losses = self.token_losses(model, batch)
        return losses.padded_mean if self.padded else losses.text_mean

    @property
    def padded(self) -> bool:
        """Whether examples are padded lines, whose padding is predicted, too."""
        data = self.config.data
        return data.layout == "lines" and not CORPORA[data.name].instructs

    def scored(self, batch: Batch) -> Tensor:
        """Which tokens the loss predicts, (b, t) bool."""
        from qpa_exp.lm.losses import IGNORED

        found = (batch["labels"] != IGNORED) | self.padded
        found[:, 0] = False  # nothing comes before it to predict it from
        return found

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse a method that packed examples would see each other through."""
        if config.data.layout == "packed" and virtual_tokens(config):
            raise InputError(
                f"data.layout=packed: the virtual tokens of peft={config.peft.method} stand before "
                "a row, not before each example in it: give data.layout=lines."
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model whose packed examples see each other."""
        if self.config.data.layout == "packed" and not _keeps_apart(model):
            raise InputError(
                f"data.layout=packed: in {type(model).__name__} of transformers "
                "examples of one row see each other: give data.layout=lines."
            )

    def measure(self, model: AdaptedModel, batch: Batch) -> Measured:
        """Nats over the tokens that have a label, and over all positions."""
        losses = self.token_losses(model, batch)
        nats = losses.nats.double()
        return {
            "text": (nats[losses.is_text].sum(), losses.is_text.sum()),
            "padded": (nats.sum(), nats.new_tensor(nats.numel())),
        }

    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """``loss``, ``perplexity`` and, in lines, ``perplexity_padded``."""
        found = {"loss": means["text"], "perplexity": _exp(means["text"])}
        return found | ({"perplexity_padded": _exp(means["padded"])} if self.padded else {})

    def figures_of_text(self, means: Mapping[str, float], size: TextSize) -> dict[str, float]:
        """``bits_per_byte`` and ``word_perplexity``, by which tokenizers can be compared.

        Total nats over ln 2 and the text's bytes, and exp of total nats over its words, as
        EleutherAI's lm-evaluation-harness defines them. The total is that of the whole text: nats a
        scored token times the tokens of the text, for some are not scored (the first of a block,
        what does not fill one, what is cut off a line). A word perplexity beyond what 32 bits hold
        is left out, and so is what would be of no words or bytes.
        """
        nats, found = means["text"] * size.tokens, {}
        if size.bytes:
            found["bits_per_byte"] = nats / (math.log(2) * size.bytes)
        if size.words and not (a_word := _exp(nats / size.words)) > _LARGEST:
            found["word_perplexity"] = a_word
        return found


def attended(batch: Batch) -> dict[str, Tensor | None]:
    """Return what tells a model which tokens see which.

    Of rows with several examples the positions alone: transformers' models keep those apart that
    each count from 0, where there is no mask.
    """
    if "position_ids" in batch:
        return {"attention_mask": None, "position_ids": batch["position_ids"]}
    return {"attention_mask": batch["attention_mask"]}


def _keeps_apart(lm: Any) -> bool:
    """Whether an example's logits are the same beside another one as alone."""
    import torch

    ids = torch.arange(1, 13, device=lm.device) % lm.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(5), torch.arange(7)]).to(lm.device)
    with torch.no_grad():
        try:
            together = lm(
                input_ids=ids[None], attention_mask=None, position_ids=positions[None],
                use_cache=False,
            ).logits[0, 5:].double()  # fmt: skip
        except (TypeError, ValueError):  # it knows no positions
            return False
        alone = lm(input_ids=ids[None, 5:], use_cache=False).logits[0].double()
    tolerance = (1e-4 if lm.dtype.itemsize > 2 else 2e-2) * float(alone.abs().max())
    return float((together - alone).abs().max()) <= tolerance


_LARGEST = 3e38
"""Figures are logged as 32-bit floats."""


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


ENTRY = CausalLM
