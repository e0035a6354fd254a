"""How the slope of the probabilities in the circuit's angles is found (``qpa.gradient``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qpa_exp.config import QPAConfig
from qpa_exp.registry import Registry

Measure = Callable[[Any], Any]
"""Turns a batch of angles into a batch of probabilities or frequencies."""
Estimate = Callable[[Measure, Any, Any], Any]
"""Takes how to measure, the angles and dL/dp, and gives dL/dtheta."""


@dataclass(frozen=True)
class GradientMethod:
    """An entry of ``qpa.gradient``.

    Attributes:
        label: its name in figures.
        estimate: from the config, and how many circuits go in one batch, to the estimate of the
            slopes; None where the back end's own backward gives them.
        check: refuses a config that it does not go with, in one sentence, and a number of qubits,
            where that is known already, else None; no check refuses none.
        reads: the config keys that have an effect under it alone.
        circuits: from a circuit's number of angles to how many more circuits a step measures; None
            where a device cannot give the slopes.
    """

    label: str
    estimate: Callable[[QPAConfig, int], Estimate] | None = None
    check: Callable[[QPAConfig, int | None], None] | None = None
    reads: tuple[str, ...] = ()
    circuits: Callable[[int], int] | None = None


GRADIENTS: Registry[GradientMethod] = Registry(
    "qpa.gradient", "qpa_exp.circuits.gradients", decides=("qpa.spsa_step",)
)
