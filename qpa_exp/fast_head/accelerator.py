"""The task ``causal_lm`` where only the head is adapted: its frozen backbone is computed once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.progress import Task as Progressing
from rich.text import Text
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from qpa_exp.adapters.qpa_model import AdaptedModel
from qpa_exp.config import DataConfig
from qpa_exp.data.datamodule import Batch, TextDataModule
from qpa_exp.errors import InputError, one_line
from qpa_exp.fast_head.head_formula import find_update
from qpa_exp.fast_head.hidden_tables import (
    GIB,
    Backbone,
    HiddenTable,
    TableDirectory,
    find_final_logits,
)
from qpa_exp.fast_head.low_rank_loss import (
    FinalLogits,
    FrozenHead,
    Update,
    dora,
    low_rank_loss,
    multiplies_fast,
    with_gradients,
)
from qpa_exp.files import typed_path
from qpa_exp.lm.losses import IGNORED, TokenLosses
from qpa_exp.machine import user_cache
from qpa_exp.task import Task
from qpa_exp.tasks.causal_lm import CausalLM, attended

log = logging.getLogger(__name__)

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PROBED_ROWS, _PROBED_TOKENS = 2, 8
_SAID_EVERY = 30.0
"""Seconds between two lines that say how far the hidden states are, where no bar is shown."""

CHUNK_BYTES = 64 * 2**20
"""The most that the logits of one chunk take in float32; torch holds a few times as much."""


def adapts_head_alone(model: AdaptedModel) -> bool:
    """Whether the output head is a linear layer, and all of the model that the method changes."""
    if model.peft_model.active_peft_config.is_prompt_learning:
        return False
    lm = model.language_model()
    head: Any = lm.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer) or not _is_plain(head.get_base_layer()):
        return False
    within = set(lm.get_output_embeddings().modules())
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
        self._without_formula: set[bool] = set()
        """Whether the layer was training, where its method had no formula."""

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
        """Give the weighted sum of the cross entropies of the model's logits, as the model is now.

        Args:
            hidden: what enters the head, for positions from 0; a constant.
            targets: the token that follows each; ``IGNORED`` where there is none.
            weights: of each prediction in the loss.

        Returns:
            The loss, which has gradients where the method is trained, and (rows, tokens) nats.
        """
        layer, flat = self.layer, (targets.flatten(), weights.flatten())
        with torch.autocast(hidden.device.type, enabled=False):
            update = self._update(hidden)
            if update is None:
                trained, vocab = self.model.trained_tensors(), len(self.frozen.weight)
                head = lambda part: self.final(layer(part))  # noqa: E731
                loss, nats = any_head_loss(head, trained, hidden.flatten(0, 1), *flat, vocab)
            else:
                loss, nats = low_rank_loss(self.frozen, update, *flat)
        return loss, nats.view(targets.shape)

    def _update(self, hidden: Tensor) -> Update | None:
        """Return what the method makes of the head; None where that has no formula here."""
        layer: Any = self.layer
        update = self._lora(layer, hidden.flatten(0, 1)) if type(layer) is LoraLinear else None
        if update is None and layer.training not in self._without_formula:
            low = self.frozen.dtype.itemsize == 2
            update = find_update(layer, layer.get_base_layer(), hidden, keep_frozen=low)
            if update is None:
                self._without_formula.add(layer.training)
        return update

    def _lora(self, layer: Any, hidden: Float[Tensor, "tokens k"]) -> Update | None:
        """Write down one adapter of LoRA's or DoRA's, or none where they are switched off.

        PEFT's DoRA makes the whole matrix, to find the norms of its rows.
        """
        names = [] if layer.disable_adapters else layer.active_adapters
        if layer.merged or len(names) > 1:
            return None
        if not names:
            return Update(hidden, bias=self.frozen.bias)
        (name,) = names
        a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        variant, scaling = layer.lora_variant.get(name), layer.scaling[name]
        # A generated layer has a class made from Linear.
        if not all(isinstance(x, nn.Linear) and x.bias is None for x in (a, b)):
            return None
        if variant is None:
            u = a(dropout(hidden.to(a.weight.dtype))) * scaling
            return Update(hidden, u.float(), b.weight.float(), bias=self.frozen.bias)
        drops = not isinstance(dropout, nn.Identity) and (dropout.training and dropout.p > 0)
        # With dropout, DoRA drops inputs of the frozen product too.
        if drops or DoraLinearVariant not in (variant, type(variant)):
            return None
        magnitude = layer.lora_magnitude_vector[name].weight
        return dora(self.frozen, hidden, a.weight, b.weight, scaling, magnitude)


def any_head_loss(
    head: Callable[[Tensor], Tensor],
    trained: Sequence[Tensor],
    hidden: Float[Tensor, "tokens k"],
    targets: Int[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    vocab: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, ""], Float[Tensor, " tokens"]]:
    """Return the weighted sum of the cross entropies of the head's logits, in float32.

    Args:
        head: gives (1, n, vocab) logits for (1, n, k) hidden states, token by token.
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
    chunks = [x.split(max(1, chunk_bytes // (4 * vocab))) for x in (hidden, targets, weights)]
    nats = []
    for h, y, w in zip(*chunks, strict=True):
        with torch.set_grad_enabled(bool(sought)):
            logits = head(h.detach()[None])[0].float()
            found = F.cross_entropy(logits, y, ignore_index=IGNORED, reduction="none")
            loss = found @ w
        nats.append(found.detach())
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, sought, allow_unused=True)
            for total, slope in zip(gradients, slopes, strict=True):
                if slope is not None:
                    total += slope
    all_nats = torch.cat(nats)
    return with_gradients(all_nats @ weights, sought, gradients), all_nats


def accelerate(
    task: Task, model: AdaptedModel, data: TextDataModule, cache_mode: str | None = None
) -> Task:
    """Return the same task by the fastest way there is for this model: where there is none, itself.

    Args:
        task: any.
        model: what it is going to be given.
        data: the examples; a few of their tokens are tried out.
        cache_mode: what ``data.cache=auto`` came to when the run began; given where it goes on, and
            its config comes from a file that somebody else may have written.

    Raises:
        InputError: ``data.cache`` asks for hidden states to be kept, and they cannot be; or
            ``data.cache_dir`` cannot be used.
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
        return FastHead(task, model, data, final, mode, resumed=cache_mode is not None)
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
        self,
        task: Task,
        model: AdaptedModel,
        data: TextDataModule,
        final: FinalLogits,
        mode: str,
        *,
        resumed: bool = False,
    ) -> None:
        """Decide where ``mode`` is auto. Nothing is computed yet, and no table is written."""
        super().__init__(task.config, task.stopwatch)
        lm = model.language_model()
        autocast = _LOW.get(self.config.trainer.precision)
        low = autocast if autocast is not None and multiplies_fast(lm.device, autocast) else None
        self.backbone = Backbone(lm, autocast)
        self.head = AdaptedHead(model, final, low)
        self.directory = _table_directory(self.config.data, resumed=resumed and mode != "off")
        self.tables: dict[str, HiddenTable] = {}
        """Name the tables by the first purpose of their examples; one split may serve for two."""
        self.cache_mode = mode if mode == "off" else self._decide(mode, data)
        if self.cache_mode == "off":
            self.tables.clear()

    # --- what a task does -----------------------------------------------------------------------

    def look_up(self, batch: Batch) -> Batch:
        """Add ``hidden`` where a table has it."""
        lengths = batch["attention_mask"].sum(1)
        for table in self.tables.values():
            hidden = table.look_up(batch["input_ids"], lengths, batch.get("position_ids"))
            if hidden is not None:
                return batch | {"hidden": hidden}
        return batch

    def loss(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Nats a token, or in padded lines nats a position."""
        return self._losses(model, batch)[0]

    def token_losses(self, model: AdaptedModel, batch: Batch) -> TokenLosses:
        """Return the loss of every prediction of a batch."""
        return self._losses(model, batch)[1]

    def _losses(self, model: AdaptedModel, batch: Batch) -> tuple[Tensor, TokenLosses]:
        ids, is_text = batch["input_ids"], batch["labels"][:, 1:] != IGNORED
        if "hidden" not in batch:  # a constant: it serves every loss of this batch
            with self.stopwatch.section("backbone", ids.device):
                hidden = self.backbone.hidden(ids, **attended(batch))
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
                table.fill_in_memory(partial(self._track, name))
                continue
            try:
                self.directory.fill(table, name, partial(self._track, name))
            except OSError as error:
                raise InputError(
                    f"Hidden states cannot be kept in {self.directory.path} "
                    f"({error.strerror or error}): make room there and resume the run, or begin "
                    "one with another data.cache_dir or data.cache=off."
                ) from error

    # --- whether tables are kept ----------------------------------------------------------------

    def _decide(self, mode: str, data: TextDataModule) -> str:
        """Memory, disk or off."""
        seen: set[int] = set()
        for role, examples in data.examples.items():
            if id(examples) not in seen:
                seen.add(id(examples))
                self.tables[role] = HiddenTable(
                    self.backbone, examples.input_ids, examples.lengths, examples.position_ids
                )
        if mode == "auto" and not (self._worth_it(data) or self._all_there()):
            return "off"
        on_disk, given = mode != "memory", self.config.data.cache_dir is not None
        refusal = None
        if not (on_disk and self._all_there()):
            refusal = self.directory.refusal(self.tables.values(), on_disk=on_disk)
        asked = mode != "auto"
        if refusal is None and on_disk:
            refusal, asked = self._unusable(), asked or given
        if refusal is None:
            return "disk" if mode == "auto" else mode
        if asked:
            raise InputError(
                f"data.cache={mode}: hidden states {refusal}: "
                "give a larger data.cache_gib, another data.cache_dir, or data.cache=off."
            )
        log.info("Hidden states are not kept: they %s.", refusal)
        return "off"

    def _unusable(self) -> str | None:
        """Why no table can be written to the directory; it is made where it is not there."""
        cache = self.directory.path.parent
        try:
            if self.config.data.cache_dir is not None and not cache.parent.is_dir():
                return f"cannot be kept in {cache}, for {cache.parent} is no directory"
            self.directory.make()
        except OSError as error:
            return f"cannot be kept in {str(cache)[:200]} ({error.strerror or error})"
        except ValueError as error:  # somebody else's directory, or no path at all
            return f"cannot be kept in {str(cache)!r:.200} ({one_line(error).rstrip('.')})"
        return None

    def _worth_it(self, data: TextDataModule) -> bool:
        """Whether training will visit as many examples as there are."""
        trainer = self.config.trainer
        visits = trainer.max_steps * trainer.accumulate_grad_batches * trainer.devices
        visits *= self.config.data.batch_size
        return trainer.max_steps == -1 or visits >= len(data.examples["train"])

    def _all_there(self) -> bool:
        return all(self.directory.has(table) for table in self.tables.values())

    def _track(
        self, split: str, blocks: Iterator[Tensor], total: int, before: int
    ) -> Iterator[Tensor]:
        """Yield what is tracked: a bar on a terminal, else a line now and then.

        And one at the end.
        """
        console = Console(stderr=True)
        # One process writes a table to disk, whichever; in memory each has its own.
        trainer = self.config.trainer
        first = trainer.devices == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
        first = first or self.cache_mode == "disk"
        shown = trainer.progress_bar and console.is_terminal and first
        began = said = time.monotonic()
        computed = 0
        columns = (*Progress.get_default_columns(), _TokensASecond())
        with Progress(*columns, console=console, disable=not shown) as bar:
            task = bar.add_task(f"hidden states, {split}", total=total, completed=before)
            for block in blocks:
                yield block
                tokens = len(block) * (block.shape[1] + 1)
                computed += tokens
                bar.advance(task, tokens)
                now = time.monotonic()
                if not shown and now - said >= _SAID_EVERY:
                    said, rate = now, computed / (now - began)
                    log.info(
                        "Hidden states of the %s split: %.0f %%, %s tokens a second, %s left",
                        split, 100 * (before + computed) / total, f"{rate:,.0f}",
                        timedelta(seconds=round((total - before - computed) / rate)),
                    )  # fmt: skip
        seconds = time.monotonic() - began
        log.info(
            "Hidden states of the %s split: %s tokens in %.1f s", split, f"{computed:,}", seconds
        )


class _TokensASecond(ProgressColumn):
    def render(self, task: Progressing) -> Text:
        """How fast it goes, once that is known."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


def _table_directory(config: DataConfig, *, resumed: bool) -> TableDirectory:
    """Where tables are kept: where the config says, or in the user's cache.

    A config that comes from a file says where nothing may be made: a cache of ours that is there
    already is used, no other place.
    """
    bound = config.cache_gib * GIB
    own = TableDirectory(user_cache(), bound)
    if config.cache_dir is None:
        return own
    asked = TableDirectory(typed_path(config.cache_dir), bound)
    if not resumed or asked.is_ours:
        return asked
    log.info(
        "The run's data.cache_dir=%s is no cache of qpa_exp: %s is used.",
        config.cache_dir, own.path.parent,
    )  # fmt: skip
    return own
