"""The sizes of a generator, before it is built."""

from __future__ import annotations

from dataclasses import dataclass

from qpa_exp.config import QPAConfig


@dataclass(frozen=True)
class GeneratorCounts:
    """The sizes of one generator."""

    trainable_params: int
    n_chunks: int
    n_qubits: int


def count_generator(m: int, config: QPAConfig) -> GeneratorCounts:
    """The sizes of the generator of ``m`` parameters."""
    import torch

    from qpa_exp.generator.generator import Generator

    with torch.device("meta"):
        made = Generator(m, config)
    return GeneratorCounts(made.n_trainable, made.chunking.n_chunks, made.chunking.n_qubits)
