"""The parts of the benchmark, and the heads that it measures: no more than their names need."""

from __future__ import annotations

from dataclasses import dataclass, replace

PARTS = ("circuits", "memory", "steps", "methods", "growth")

_LOGITS_HELD_NAIVELY = 7
"""Tensors of the size of the logits that a step holds which makes them all at once."""


@dataclass(frozen=True)
class Shape:
    """A model's output head, and what comes before it.

    Attributes:
        layers: of the backbone; 0 measures the head alone, on given hidden states.
        relatives: whether every relative of the generator is measured, too.
        n_mlp: of the generator.
        reduced_from: the vocabulary that the model has, where a smaller one is measured.
    """

    name: str
    family: str
    vocab: int
    width: int
    tokens: int
    n_mlp: int
    layers: int = 0
    soft_cap: float | None = None
    reduced_from: int | None = None
    relatives: bool = False

    @property
    def bytes_needed(self) -> int:
        """Count the bytes of the weights in float32 and of a step that holds all logits."""
        return 4 * self.vocab * (self.width + _LOGITS_HELD_NAIVELY * self.tokens)

    def fitting(self, free: int) -> Shape:
        """Return this shape with a vocabulary that leaves a quarter of the free memory."""
        room = 0.75 * free / self.bytes_needed
        return self if room >= 1 else self.with_vocab(max(1024, int(self.vocab * room)))

    def with_vocab(self, vocab: int) -> Shape:
        """Return this shape with a smaller vocabulary, which it remembers."""
        if vocab == self.vocab:
            return self
        return replace(self, vocab=vocab, reduced_from=self.reduced_from or self.vocab)


SHAPES = {
    "tiny": Shape("tiny", "gpt2", 16384, 128, 512, 64),
    "smollm2": Shape("smollm2", "llama", 49152, 576, 1024, 64, relatives=True),
    "gpt2": Shape("gpt2", "gpt2", 50257, 768, 512, 2048, layers=12),
    "gemma": Shape("gemma", "gemma", 256000, 2048, 512, 8192),
    "gemma2": Shape("gemma2", "gemma2", 256000, 2304, 512, 8192, soft_cap=30.0),
}
