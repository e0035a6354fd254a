"""Finite shots: how often each basis state is found in so many measurements."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sample_frequencies(
    probabilities: Float[Tensor, "*batch states"], shots: int, stream: torch.Generator | None = None
) -> Float[Tensor, "*batch states"]:
    """The frequencies of the basis states in ``shots`` measurements: multinomial counts / shots.

    The counts are drawn by halving: how many of a half's shots fall into its own upper half is
    binomial, so all 2^N counts take N draws, however many shots there are. Drawn on the CPU, so
    that a seed gives the same sample beside any accelerator.

    Args:
        probabilities: of 2^N basis states, summing to 1; not differentiated.
        shots: measurements of each circuit.
        stream: a CPU generator; None = torch's global stream.
    """
    exact = probabilities.detach().to("cpu", torch.float64).clamp_min(0)
    masses = [exact]
    while masses[-1].shape[-1] > 1:
        masses.append(masses[-1].unflatten(-1, (-1, 2)).sum(-1))
    counts = torch.full_like(masses[-1], shots)
    for halves in reversed(masses[:-1]):
        upper = halves[..., 1::2] / (halves[..., 0::2] + halves[..., 1::2])
        in_upper = torch.binomial(counts, upper.nan_to_num(0.0).clamp(0, 1), generator=stream)
        counts = torch.stack([counts - in_upper, in_upper], dim=-1).flatten(-2)
    return (counts / shots).to(probabilities)


def pass_through(
    probabilities: Float[Tensor, "*batch states"], frequencies: Float[Tensor, "*batch states"]
) -> Float[Tensor, "*batch states"]:
    """The sampled frequencies, with the slope of the exact probabilities.

    A sample has no slope. Its expectation is the exact distribution, so what arrives at the
    frequencies is handed on to the probabilities unchanged (a straight-through estimator): the
    backward is that of the exact circuit, at the point where the sample was taken.
    """
    return probabilities + (frequencies - probabilities).detach()
