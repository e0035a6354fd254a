"""The task ``causal_lm`` where only the head is adapted: its frozen backbone is computed once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from qpa_exp.adapters.adapted import AdaptedModel
from qpa_exp.data.datamodule import Batch, TextDataModule
from qpa_exp.errors import InputError
from qpa_exp.fast_head.adapted_head import AdaptedHead, adapts_head_alone
from qpa_exp.fast_head.backbone import Backbone, find_final_logits
from qpa_exp.fast_head.frozen_head import FinalLogits, multiplies_fast
from qpa_exp.fast_head.hidden_tables import GIB, HiddenTable, TableDirectory, default_directory
from qpa_exp.lm.losses import IGNORED, TokenLosses
from qpa_exp.task import Task
from qpa_exp.tasks.causal_lm import CausalLM

log = logging.getLogger(__name__)

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PROBED_ROWS, _PROBED_TOKENS = 2, 8


def accelerate(
    task: Task, model: AdaptedModel, data: TextDataModule, cache_mode: str | None = None
) -> Task:
    """The same task by the fastest way there is for this model: where there is none, itself.

    Args:
        task: any.
        model: what it is going to be given.
        data: the examples; a few of their tokens are tried out.
        cache_mode: what ``data.cache=auto`` came to when the run began, where it goes on.

    Raises:
        InputError: ``data.cache`` asks for hidden states to be kept, and they cannot be.
    """
    mode = cache_mode or task.config.data.cache
    final = None
    if type(task) is CausalLM and adapts_head_alone(model):
        lm, few = model.language_model(), data.examples["test"].input_ids
        with model.disable_adapter():
            final = find_final_logits(lm, few[:_PROBED_ROWS, :_PROBED_TOKENS].to(lm.device))
        if final is None:
            log.info("Logits of this model are not its head's: the whole model is computed.")
    if final is not None:
        return FastHead(task, model, data, final, mode)
    if mode in ("disk", "memory"):
        raise InputError(
            f"data.cache={mode}: hidden states are constants only where the output head alone is "
            "adapted: give data.cache=off, or peft.target_modules=[lm_head]."
        )
    return task


class FastHead(CausalLM):
    """``causal_lm`` for a model whose head alone is adapted.

    What enters the head comes from tables, or from the backbone where none are kept; the loss of
    that from :class:`AdaptedHead`. Batches that were looked up, or met once, hold it as ``hidden``,
    (b, t - 1, k).
    """

    slope_section = "head"

    def __init__(
        self, task: Task, model: AdaptedModel, data: TextDataModule, final: FinalLogits, mode: str
    ) -> None:
        """Decide where ``mode`` is auto. Nothing is computed or written yet."""
        super().__init__(task.config, task.stopwatch)
        lm = model.language_model()
        autocast = _LOW.get(self.config.trainer.precision)
        low = autocast if autocast is not None and multiplies_fast(lm.device, autocast) else None
        self.backbone = Backbone(lm, autocast)
        self.head = AdaptedHead(model, final, low)
        path = self.config.data.cache_dir
        self.directory = TableDirectory(
            default_directory() if path is None else Path(path).expanduser(),
            self.config.data.cache_gib * GIB,
        )
        self.tables: dict[str, HiddenTable] = {}
        """By the first purpose that their examples serve; one split may serve for two."""
        self.cache_mode = mode if mode == "off" else self._decide(mode, data)
        if self.cache_mode == "off":
            self.tables.clear()

    # --- what a task does -----------------------------------------------------------------------

    def look_up(self, batch: Batch) -> Batch:
        """Add ``hidden`` where a table has it."""
        lengths = batch["attention_mask"].sum(1)
        for table in self.tables.values():
            hidden = table.look_up(batch["input_ids"], lengths)
            if hidden is not None:
                return batch | {"hidden": hidden}
        return batch

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Nats a token, or in padded lines nats a position."""
        return self._losses(model, batch)[0]

    def token_losses(self, model: AdaptedModel, batch: Batch) -> TokenLosses:
        """The loss of every prediction of a batch."""
        return self._losses(model, batch)[1]

    def _losses(self, model: AdaptedModel, batch: Batch) -> tuple[Tensor, TokenLosses]:
        ids, is_text = batch["input_ids"], batch["labels"][:, 1:] != IGNORED
        if "hidden" not in batch:  # a constant: it serves every loss of this batch
            with self.stopwatch.section("backbone", ids.device):
                hidden = self.backbone.hidden(ids, batch["attention_mask"])
                batch["hidden"] = hidden[:, :-1]
        counted = torch.ones_like(is_text) if self.padded else is_text
        weights = counted / counted.sum().clamp_min(1)
        model.refresh()
        with self.stopwatch.section("head", ids.device):
            loss, nats = self.head.loss(batch["hidden"], ids[:, 1:], weights)
        return loss, TokenLosses(nats, is_text)

    def prepare(self) -> None:
        """Fill the tables: compute them now, or read them."""
        for name, table in self.tables.items():
            if self.cache_mode == "memory":
                table.fill_in_memory(self._track)
                continue
            try:
                self.directory.fill(table, name, self._track)
            except OSError as error:
                raise InputError(
                    f"Hidden states cannot be kept in {self.directory.path} ({error}): "
                    "give another data.cache_dir, or data.cache=off."
                ) from error

    # --- whether tables are kept ----------------------------------------------------------------

    def _decide(self, mode: str, data: TextDataModule) -> str:
        """Memory, disk or off."""
        seen: set[int] = set()
        for role, examples in data.examples.items():
            if id(examples) not in seen:
                seen.add(id(examples))
                self.tables[role] = HiddenTable(self.backbone, examples.input_ids, examples.lengths)
        if mode == "auto" and not (self._worth_it(data) or self._all_there()):
            return "off"
        refusal = None
        if mode == "memory" or not self._all_there():
            size = sum(table.size for table in self.tables.values())
            refusal = self.directory.refusal(size, on_disk=mode != "memory")
        if refusal is None:
            return "disk" if mode == "auto" else mode
        if mode != "auto":
            raise InputError(
                f"data.cache={mode}: hidden states of {refusal}: "
                "give a larger data.cache_gib, another data.cache_dir, or data.cache=off."
            )
        log.info("Hidden states are not kept: %s.", refusal)
        return "off"

    def _worth_it(self, data: TextDataModule) -> bool:
        """Whether training will visit as many examples as there are."""
        trainer = self.config.trainer
        visits = trainer.max_steps * trainer.accumulate_grad_batches * trainer.devices
        visits *= self.config.data.batch_size
        return trainer.max_steps == -1 or visits >= len(data.examples["train"])

    def _all_there(self) -> bool:
        return all(self.directory.has(table) for table in self.tables.values())

    def _track(self, parts: Iterator[Tensor], total: int) -> Iterator[Tensor]:
        """A progress bar on a terminal."""
        console = Console(stderr=True)
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        shown = self.config.trainer.progress_bar and console.is_terminal and first
        with Progress(console=console, disable=not shown) as bar:
            task = bar.add_task("hidden states", total=total)
            for part in parts:
                yield part
                bar.advance(task, len(part))
