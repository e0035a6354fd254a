"""What computes a circuit's probabilities (``qpa.backend``): one file each, imported if chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpa_exp.registry import Registry

if TYPE_CHECKING:
    from qpa_exp.circuits.simulator import Simulator

BACKENDS: Registry[type[Simulator]] = Registry(
    "qpa.backend", "qpa_exp.circuits.backends", decides=("qpa.noise", "qpa.device")
)
