"""Exact slopes from two evaluations an angle: the parameter-shift rule (Mitarai et al. 2018)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.ansatz import GATES, ansatz_of
from qpa_exp.circuits.gradients import Estimate, GradientMethod, Measure
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError


def _check(config: QPAConfig, n_qubits: int | None) -> None:
    ansatz = ansatz_of(config)
    used = dict.fromkeys(moment.gate for moment in ansatz.moments)
    # Two evaluations at angle +- pi/2 give the slope of half-angle Pauli rotations alone.
    if gates := [name for name in used if GATES[name].controlled]:
        raise InputError(
            f"qpa.gradient=parameter_shift does not cover qpa.ansatz={config.ansatz}: "
            f"{', '.join(gates)} is no half-angle Pauli rotation; give autograd or spsa."
        )
    if n_qubits is None:
        return
    angles = Counter(gate.angle for gate in ansatz.gates(n_qubits, n_layers=1) if gate.angle)
    if shared := [qubit for (_, _, qubit), gates in angles.items() if gates > 1]:
        raise InputError(
            f"qpa.gradient=parameter_shift does not cover qpa.ansatz={config.ansatz}: of "
            f"{n_qubits} qubits several gates of one moment turn by the same angle, that of qubit "
            f"{shared[0]}; give autograd or spsa."
        )


def parameter_shift(config: QPAConfig, most: int) -> Estimate:
    """Return the vector-Jacobian product by the parameter-shift rule.

    For a gate ``exp(-i angle/2 P)`` the slope of any probability is exactly
    ``(p(angle + pi/2) - p(angle - pi/2)) / 2``. Two circuits for each angle, in one batch, or in
    several of at most ``most`` circuits. Circuits side by side are shifted together.
    """
    return partial(_estimate, max(1, most // 2))


def _estimate(
    together: int,
    measure: Measure,
    theta: Float[Tensor, "*circuits layers rotations qubits"],
    grad: Float[Tensor, "*circuits states"],
) -> Float[Tensor, "*circuits layers rotations qubits"]:
    slopes = [
        torch.linalg.vecdot(measure(shifted).diff(dim=1).squeeze(1), grad) / 2
        for shifted in _shifted(theta, together)
    ]
    return torch.cat(slopes).movedim(0, -1).reshape(theta.shape)


def _shifted(
    theta: Float[Tensor, "*circuits layers rotations qubits"], angles: int
) -> Iterator[Float[Tensor, "angles 2 *circuits layers rotations qubits"]]:
    """Yield every circuit with an angle shifted down, and up, for so many angles at a time."""
    flat = theta.flatten(-3)
    for places in torch.arange(flat.shape[-1], device=theta.device).split(angles):
        steps = flat.new_zeros(len(places), flat.shape[-1])
        steps[torch.arange(len(places)), places] = math.pi / 2
        steps = steps.view(len(places), *[1] * (flat.ndim - 1), -1)
        both = torch.stack([flat - steps, flat + steps], dim=1)
        yield both.unflatten(-1, theta.shape[-3:])


ENTRY = GradientMethod(
    "parameter shift", parameter_shift, _check, circuits=lambda n_angles: 2 * n_angles
)
