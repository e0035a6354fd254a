"""``task=seq_cls``: tell the class of a text, by transformers' sequence classification models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qpa_exp.adapters.counts import Counts, plan_counts
from qpa_exp.config import Config
from qpa_exp.data.corpus import CORPORA, comes_from_the_hub, load_corpus
from qpa_exp.errors import InputError
from qpa_exp.task import Measured, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qpa_exp.adapters.qpa_model import AdaptedModel
    from qpa_exp.data.datamodule import Batch

log = logging.getLogger(__name__)


class SequenceClassification(Task):
    """Sequence classification: the cross entropy of each text's class.

    A classifier that the model lacks starts at random, drawn from the run's seed. It is trained
    beside the method, as PEFT does it.
    """

    label = "sequence classification"
    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    metrics = (Metric("accuracy", "accuracy", smaller_is_better=False),)
    measures = ("nats", "correct")

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse text without classes, and blocks, which have no class of their own."""
        if not CORPORA[config.data.name].class_names:
            raise InputError(
                f"task=seq_cls needs a class for each text, and data={config.data.name} has none: "
                "give data=labelled data.path=<a CSV, JSON-lines or parquet file>."
            )
        if config.data.layout != "lines":
            raise InputError(
                f"data.layout={config.data.layout} cuts texts into pieces, and task=seq_cls has "
                "one class for each text: give data.layout=lines."
            )
        if config.peft.target_modules == ["lm_head"]:
            raise InputError(
                "peft.target_modules=[lm_head]: a model for task=seq_cls has no lm_head; name its "
                "layers, for example [c_attn], or [all-linear]."
            )

    @classmethod
    def plan(cls, config: Config) -> Counts:
        """Count what the run trains; the text is read for its classes, unless the hub has it."""
        n_classes = None
        if comes_from_the_hub(config.data):
            log.warning(
                "%s is not read for a plan: the classifier is counted with the classes that the "
                "model has now.",
                config.data.path,
            )
        else:
            n_classes = len(load_corpus(config.data).class_names)
        return plan_counts(
            config, auto_class=cls.auto_class, task_type=cls.peft_task_type, n_classes=n_classes
        )

    def classes(self) -> list[str]:
        """Name the classes that the model was trained to tell apart, in its order."""
        from qpa_exp.lm.loading import load_architecture

        names: dict[Any, str] = dict(load_architecture(self.config.model).id2label or {})
        return [names[n] for n in sorted(names)]

    def loading(self, tokenizer: PreTrainedTokenizerBase, class_names: list[str]) -> dict[str, Any]:
        """Ask for a classifier of these classes, which tells a text's end by its padding."""
        from qpa_exp.data.datamodule import padding

        return {
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: number for number, name in enumerate(class_names)},
            "pad_token_id": padding(tokenizer),
            "ignore_mismatched_sizes": True,  # a classifier of other classes is made anew
        }

    def load_model(
        self, tokenizer: PreTrainedTokenizerBase, class_names: list[str]
    ) -> PreTrainedModel:
        """Return the model; a classifier that it lacks is drawn from the run's seed."""
        import torch

        from qpa_exp.lm.loading import load_model

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            more = self.loading(tokenizer, class_names)
            return load_model(self.config.model, self.auto_class, new_head=True, **more)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse an encoder with a decoder, which reads a text's end by its EOS tokens."""
        if model.config.is_encoder_decoder:
            raise InputError(
                f"model={self.config.model.name} is a {model.config.model_type}, an encoder with a "
                "decoder: task=seq_cls needs one of them alone, as GPT-2 or RoBERTa is."
            )

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Nats a text."""
        return self._nats(self._logits(model, batch), batch).mean()

    def measure(self, model: AdaptedModel, batch: Batch) -> Measured:
        """Nats, and texts whose most likely class is theirs."""
        logits, labels = self._logits(model, batch), batch["labels"]
        count = labels.new_tensor(len(labels))
        right = (logits.argmax(-1) == labels).sum()
        return {"nats": (self._nats(logits, batch).sum(), count), "correct": (right, count)}

    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """``loss`` and ``accuracy``."""
        return {"loss": means["nats"], "accuracy": means["correct"]}

    def _logits(self, model: AdaptedModel, batch: Batch) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with self.stopwatch.section("backbone", ids.device):
            logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
            return logits

    def _nats(self, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), batch["labels"], reduction="none")


ENTRY = SequenceClassification
