"""Training a small GPT-2 from scratch on the CPU: recipe, batches, loss, optimizer, loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from qpa_exp.errors import InputError

CHECKPOINT_TOKENS = 16384  # a checkpoint needs only an estimate of the held-out loss


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run (defaults: the shipped model)."""

    seed: int = 0
    steps: int = 1200
    batch_tokens: int = 8192
    short_block: int = 128
    long_block: int = 512
    peak_lr: float = 3e-3
    warmup_fraction: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    held_out_percent: int = 1
    vocab_size: int = 16384
    n_embd: int = 128
    n_layer: int = 4
    n_head: int = 4
    threads: int = 2


# --- batches ----------------------------------------------------------------------------------


def training_batches(stream: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches; a seeded coin decides between short and long blocks at every step."""
    generator = torch.Generator().manual_seed(recipe.seed)
    cutters = [
        cut_blocks(stream, length, max(1, recipe.batch_tokens // length), generator)
        for length in (recipe.short_block, recipe.long_block)
    ]
    while True:
        yield next(cutters[int(torch.randint(2, (1,), generator=generator))])


def cut_blocks(
    stream: Tensor, length: int, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless batches (count, length + 1): inputs and, shifted by one, their targets.

    Each pass cuts the stream at a fresh random phase and visits its blocks in random order.

    Raises:
        InputError: the stream is shorter than one block.
    """
    span = len(stream) - 1
    if span < length:
        raise InputError(f"The training text has {span} tokens, but a block needs {length}.")
    queue = torch.empty(0, dtype=torch.int64)
    offsets = torch.arange(length + 1)
    while True:
        while len(queue) < count:
            phase = int(torch.randint(min(length, span - length + 1), (1,), generator=generator))
            starts = torch.arange(phase, span - length + 1, length)
            order = torch.randperm(len(starts), generator=generator)
            queue = torch.cat([queue, starts[order]])
        yield stream[queue[:count, None] + offsets]
        queue = queue[count:]


# --- model and loss ---------------------------------------------------------------------------


def build_model(recipe: Recipe) -> GPT2LMHeadModel:
    """GPT-2 with random weights, tied embeddings and no dropout."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocab_size,
        n_embd=recipe.n_embd,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        n_positions=recipe.long_block,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def batch_loss(model: GPT2LMHeadModel, batch: Tensor) -> Tensor:
    """Differentiable mean loss, nats a token, of a batch (count, length + 1)."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(batch[:, :-1], use_cache=False).last_hidden_state
    weight = model.lm_head.weight
    loss = _ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, batch[:, 1:].flatten())
    assert isinstance(loss, Tensor)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a linear head, a few rows at a time.

    The logits of a whole step (8192 x 16384) far exceed the processor's cache and take most of
    the step's time. Here each slice of rows yields its loss and its gradients while it is in the
    cache, so that the logits are never stored.
    """

    ROWS = 128

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats from hidden (n, d), weight (vocabulary, d) and targets (n,)."""
        hidden, head = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = torch.zeros(())
        for start in range(0, len(targets), _ChunkedCrossEntropy.ROWS):
            rows = slice(start, start + _ChunkedCrossEntropy.ROWS)
            index = targets[rows, None]
            log_probs = torch.log_softmax(hidden[rows] @ head.T, dim=-1, dtype=torch.float32)
            total -= log_probs.gather(1, index).sum()
            delta = log_probs.exp_()
            delta.scatter_add_(1, index, torch.full(index.shape, -1.0))
            delta = delta.to(torch.bfloat16)
            grad_hidden[rows] = delta @ head
            grad_weight += delta.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.count = len(targets)
        return total / ctx.count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return grad_hidden.float() * scale, grad_weight * scale, None


@torch.no_grad()
def held_out_loss(
    model: GPT2LMHeadModel, stream: Tensor, length: int, max_tokens: int | None = None
) -> float:
    """Mean loss in nats a token over consecutive blocks of `length`, in float32."""
    count = (len(stream) - 1) // length
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // length))
    if count < 1:
        return math.nan
    inputs = stream[: count * length].view(count, length)
    targets = stream[1 : count * length + 1].view(count, length)
    total = 0.0
    for x, y in zip(inputs.split(4), targets.split(4), strict=True):
        logits = model(x, use_cache=False).logits
        total += float(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
    return total / (count * length)


# --- optimizer --------------------------------------------------------------------------------


def build_optimizer(model: GPT2LMHeadModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not biases and normalisation gains."""
    parameters = list(model.parameters())  # lists the tied head once
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(recipe.beta1, recipe.beta2))


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    warmup = max(1, round(recipe.warmup_fraction * recipe.steps))
    if step < warmup:
        return recipe.peak_lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.peak_lr * 0.5 * (1.0 + math.cos(math.pi * progress))


# --- loop -------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    model: GPT2LMHeadModel,
    training: Tensor,
    held_out: Tensor,
    report_every: int,
    save_every: int,
) -> Iterator[dict[str, Any]]:
    """Train `model` in place on one stream of tokens, measure it on another.

    Yields the losses so far whenever the model is worth saving: every `save_every` steps, so
    that an interrupted run leaves a usable model, and after the last one.
    """
    torch.set_num_threads(recipe.threads)
    optimizer = build_optimizer(model, recipe)
    progress = Progress(recipe.steps, report_every)
    batches = islice(training_batches(training, recipe), recipe.steps)
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, recipe)
        loss = batch_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        progress.add(loss.item(), batch[:, 1:].numel())
        if step == recipe.steps or step % save_every == 0:
            yield _outcome(recipe, model, held_out, progress)


def _outcome(
    recipe: Recipe, model: GPT2LMHeadModel, held_out: Tensor, progress: Progress
) -> dict[str, Any]:
    finished = progress.step == recipe.steps
    budget = None if finished else CHECKPOINT_TOKENS
    losses = {
        str(length): held_out_loss(model, held_out, length, budget)
        for length in (recipe.short_block, recipe.long_block)
    }
    print(f"step {progress.step:5d}  held-out loss by block length {losses}", flush=True)
    return {
        "finished": finished,
        "steps": progress.step,
        "tokens_seen": progress.tokens,
        "wall_seconds": round(progress.seconds, 1),
        "final_training_loss": progress.mean_loss,
        "final_held_out_loss": losses[str(recipe.long_block)],
        "final_held_out_loss_by_block_length": losses,
    }


class Progress:
    """Averages the loss between reports and prints one plain line for each report."""

    def __init__(self, steps: int, every: int) -> None:
        self.steps, self.every = steps, every
        self.started = time.perf_counter()
        self.step = self.tokens = 0
        self.mean_loss = math.nan
        self._losses: list[float] = []
        self._reported = (self.started, 0)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start of training."""
        return time.perf_counter() - self.started

    def add(self, loss: float, tokens: int) -> None:
        """Record one finished step."""
        self.step += 1
        self.tokens += tokens
        self._losses.append(loss)
        if self.step % self.every == 0 or self.step == self.steps:
            self._report()

    def _report(self) -> None:
        now, (before, tokens_before) = time.perf_counter(), self._reported
        self.mean_loss = sum(self._losses) / len(self._losses)
        speed = (self.tokens - tokens_before) / max(now - before, 1e-9)
        left = (self.steps - self.step) * (now - self.started) / self.step / 60
        print(
            f"step {self.step:5d}/{self.steps}  loss {self.mean_loss:.4f}  "
            f"{speed:7.0f} tokens/s  {left:5.1f} min left",
            flush=True,
        )
        self._losses, self._reported = [], (now, self.tokens)
