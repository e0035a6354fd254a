"""Where only the head is adapted, a run need not compute its frozen backbone again and again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from qpa_exp.adapters import AdaptedModel
from qpa_exp.config import Config
from qpa_exp.data.datamodule import TextDataModule
from qpa_exp.errors import InputError
from qpa_exp.fast_head.adapted_head import AdaptedHead, adapts_head_alone, language_model
from qpa_exp.fast_head.backbone import find_final_logits
from qpa_exp.fast_head.cache import (
    GIB,
    Backbone,
    HiddenStates,
    Rows,
    Shelf,
    default_directory,
    in_memory,
)

log = logging.getLogger(__name__)

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PROBED_ROWS, _PROBED_TOKENS = 2, 8


@dataclass(frozen=True)
class ShortWay:
    """The frozen backbone and the adapted head of a model, one after the other.

    Attributes:
        backbone: gives the hidden states.
        head: gives the loss of those.
    """

    backbone: Backbone
    head: AdaptedHead


def find_short_way(
    model: AdaptedModel, config: Config, data: TextDataModule, identity: str
) -> ShortWay | None:
    """The short way to a model's loss; None where there is none, which the log says why.

    Args:
        model: the adapted model.
        config: of the run.
        data: a few of its tokens are tried out.
        identity: the language model's fingerprint, taken before it was adapted.
    """
    if not adapts_head_alone(model):
        return None
    few = data.examples["test"].input_ids[:_PROBED_ROWS, :_PROBED_TOKENS]
    lm = language_model(model)
    with model.disable_adapter():
        final = find_final_logits(lm, few.to(lm.device))
    if final is None:
        log.info("Logits of this model are not those of its head: the whole model is computed.")
        return None
    autocast = _LOW.get(config.trainer.precision)
    low = autocast if autocast is not None and has_fast_products(lm.device, autocast) else None
    return ShortWay(Backbone(lm, identity, autocast), AdaptedHead(model, final, low))


def has_fast_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device multiplies matrices of this type faster than those of float32."""
    if device.type != "cpu":
        return True
    return dtype == torch.bfloat16 and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


class StateTables:
    """The hidden states of a run's splits: whether they are kept, and where.

    Attributes:
        mode: memory, disk or off.
    """

    def __init__(
        self, way: ShortWay | None, config: Config, data: TextDataModule, mode: str
    ) -> None:
        """Decide, where ``mode`` is auto. Nothing is written yet.

        Raises:
            InputError: they shall be kept, but cannot be.
        """
        self.way, self.config, self.data = way, config, data
        directory = config.data.cache_dir
        self.shelf = Shelf(
            default_directory() if directory is None else Path(directory).expanduser(),
            config.data.cache_gib * GIB,
        )
        self.mode = mode
        if self.mode == "off":
            return
        if way is None:
            self._no_short_way()
            return
        self.rows = {
            role: Rows.of(examples.input_ids, examples.lengths)
            for role, examples in data.examples.items()
        }
        if self.mode == "auto" and not (self._worth_it() or self._all_there()):
            self.mode = "off"
            return
        self._check_size()

    def _no_short_way(self) -> None:
        if self.mode != "auto":
            raise InputError(
                f"data.cache={self.mode}: hidden states are constants only where the output head "
                "alone is adapted: give data.cache=off, or peft.target_modules=[lm_head]."
            )
        self.mode = "off"

    def _worth_it(self) -> bool:
        """Whether training will visit as many examples as there are."""
        trainer = self.config.trainer
        visits = trainer.max_steps * trainer.accumulate_grad_batches * trainer.devices
        visits *= self.config.data.batch_size
        return trainer.max_steps == -1 or visits >= len(self.data.examples["train"])

    def _all_there(self) -> bool:
        assert self.way is not None
        return all(self.shelf.has(self.way.backbone, rows) for rows in self.rows.values())

    def _check_size(self) -> None:
        assert self.way is not None
        different = {id(self.data.examples[role]): rows for role, rows in self.rows.items()}
        size = sum(self.way.backbone.size(rows) for rows in different.values())
        refusal = None
        if self.mode == "memory":
            refusal = self.shelf.over_bound(size)
        elif not self._all_there():
            refusal = self.shelf.refusal(size)
        if refusal is not None and self.mode != "auto":
            raise InputError(
                f"data.cache={self.mode}: hidden states of {refusal}: "
                "give a larger data.cache_gib, another data.cache_dir, or data.cache=off."
            )
        if refusal is not None:
            log.info("Hidden states are not kept: %s.", refusal)
            self.mode = "off"
        elif self.mode == "auto":
            self.mode = "disk"

    def fill(self) -> None:
        """Hand the hidden states to the data module: computed now, or read."""
        if self.way is None or self.mode == "off":
            return
        made: dict[int, HiddenStates] = {}
        for role, rows in self.rows.items():
            examples = id(self.data.examples[role])  # one split may serve twice
            if examples not in made:
                made[examples] = self._table(role, rows)
            self.data.hidden_states[role] = made[examples]

    def _table(self, role: str, rows: Rows) -> HiddenStates:
        assert self.way is not None
        if self.mode == "memory":
            return in_memory(self.way.backbone, rows, self._track)
        try:
            return self.shelf.table(self.way.backbone, rows, role, self._track)
        except OSError as error:
            raise InputError(
                f"Hidden states cannot be kept in {self.shelf.directory} ({error}): "
                "give another data.cache_dir, or data.cache=off."
            ) from error

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
