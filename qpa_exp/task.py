"""What a run trains for: the loss of a batch, what is measured, and the metric that ranks runs.

A task is a file of ``qpa_exp/tasks``. The rest of the system asks it for its metrics and knows
none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from qpa_exp.adapters.counts import Counts, plan_counts
from qpa_exp.config import Config
from qpa_exp.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qpa_exp.adapters.qpa_model import AdaptedModel
    from qpa_exp.data.datamodule import Batch, TextDataModule, TextSize

Measured = dict[str, tuple["Tensor", "Tensor"]]
"""Sums over a batch and how many things were summed: what means over a split are made of."""


@dataclass(frozen=True)
class Metric:
    """A figure of the test split, under its key in ``metrics.json``.

    The unadapted model's is recorded beside it, as ``base_<name>``.

    Attributes:
        name: the key.
        label: what stands on the axis of a figure.
        smaller_is_better: whether the lowest value is the best one.
        restates: the metric that it is another form of: on one text one follows from the other. It
            has a column in tables, and neither a panel in figures nor a comparison of its own.

    Examples:
        >>> from qpa_exp.task import Metric
        >>> Metric("f1", "F1 score", smaller_is_better=False).restates is None
        True
    """

    name: str
    label: str
    smaller_is_better: bool = True
    restates: str | None = None


@runtime_checkable
class Clock(Protocol):
    """Counts where the time goes."""

    def section(self, name: str, device: torch.device) -> AbstractContextManager[None]:
        """Count what is done in this context as ``name``."""


class Task(ABC):
    """What a run trains for.

    A subclass is the ``ENTRY`` of its file, and has ``loss``, ``measure`` and ``figures``. Nothing
    in it is trained, and nothing is kept from one batch to the next.

    Args:
        config: of the run.
        stopwatch: counts where the time goes.

    Attributes:
        label: its name for people.
        auto_class: transformers' class that loads the model.
        peft_task_type: PEFT's name for it.
        metrics: what the test split is measured by; runs are ranked by the first.
        measures: the names of the means that these are made from.
        writes_text: whether its models generate text.
        slope_section: under which section the backward pass is timed.
        cache_mode: whether and where results of the frozen model are kept: off, memory or disk.

    Examples:
        >>> from qpa_exp.task import TASKS
        >>> TASKS["seq_cls"].ranked_by().name
        'accuracy'
        >>> [metric.name for metric in TASKS["causal_lm"].metrics]
        ['perplexity', 'perplexity_padded', 'bits_per_byte', 'word_perplexity']
    """

    label: ClassVar[str]
    auto_class: ClassVar[str]
    peft_task_type: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    measures: ClassVar[tuple[str, ...]]
    writes_text: ClassVar[bool] = False
    slope_section: str = "backbone"
    cache_mode: str = "off"

    def __init__(self, config: Config, stopwatch: Clock) -> None:
        self.config, self.stopwatch = config, stopwatch

    @classmethod
    def ranked_by(cls) -> Metric:
        """Return the metric by which runs are compared where there is one alone."""
        return cls.metrics[0]

    @classmethod  # noqa: B027
    def check(cls, config: Config) -> None:
        """Refuse a config that this task cannot train; nothing has been loaded."""

    @classmethod
    def plan(cls, config: Config) -> Counts:
        """Count what the run trains, from its shapes alone; see :func:`plan_counts`."""
        return plan_counts(config, auto_class=cls.auto_class, task_type=cls.peft_task_type)

    def data(self) -> TextDataModule:
        """Return the run's data, which is read at its first use."""
        from qpa_exp.data.datamodule import TextDataModule
        from qpa_exp.lm.loading import load_tokenizer

        config = self.config
        return TextDataModule(
            config.data, load_tokenizer(config.model), config.seed, classes=self.classes()
        )

    def classes(self) -> list[str] | None:
        """Name the classes that the model tells apart so far; None where tokens are predicted."""
        return None

    def loading(self, tokenizer: PreTrainedTokenizerBase, class_names: list[str]) -> dict[str, Any]:
        """Return what the model's ``from_pretrained`` takes beside its place; for most, nothing.

        The card of an export shows the same.
        """
        return {}

    def load_model(
        self, tokenizer: PreTrainedTokenizerBase, class_names: list[str]
    ) -> PreTrainedModel:
        """Return the frozen model, in evaluation mode, on the CPU."""
        from qpa_exp.lm.loading import load_model

        more = self.loading(tokenizer, class_names)
        return load_model(self.config.model, self.auto_class, **more)

    def scored(self, batch: Batch) -> Tensor:
        """Which tokens of a batch carry loss, (b, t) bool; none where a class is predicted."""
        return batch["attention_mask"].new_zeros(batch["input_ids"].shape).bool()

    def check_model(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Refuse a frozen model that this task cannot train as configured."""

    def prepare(self) -> None:  # noqa: B027 - most tasks need nothing
        """Do what needs to be done once before training; it may take long."""

    def look_up(self, batch: Batch) -> Batch:
        """Add to a batch what is known of it already, before it goes to the accelerator."""
        return batch

    @abstractmethod
    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return the scalar that training minimises, in nats."""

    @abstractmethod
    def measure(self, model: AdaptedModel, batch: Batch) -> Measured:
        """Sum over the batch for each name in ``measures``, and count what each sums."""

    @abstractmethod
    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """``loss`` and the metrics, from the means over a split. What is not a number stays so."""

    def figures_of_text(self, means: Mapping[str, float], size: TextSize) -> dict[str, float]:
        """Metrics that depend on how large the split's text is, too; most tasks have none."""
        return {}


TASKS: Registry[type[Task]] = Registry("task", "qpa_exp.tasks")
