"""The exact probabilities of a circuit, differentiable in its angles.

A circuit that the compiled engine takes goes there, and any other to torch's operations. The basis
state |b_1 b_2 ... b_N> has the index with b_1 as its most significant bit.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpa_exp.circuits import compiled_engine, torch_engine
from qpa_exp.circuits.ansatz import Ansatz
from qpa_exp.circuits.ansatze import ANSATZE


# A compiler of the caller has nothing to gain here: it goes on behind the circuit.
@torch.compiler.disable
def probabilities(
    theta: Float[Tensor, "*batch layers rotations qubits"], ansatz: Ansatz | str = "ry"
) -> Float[Tensor, "*batch states"]:
    """|<i|psi(theta)>|^2 for every basis state i (Eq. 1), differentiable once in theta.

    Args:
        theta: angles in radians, one for each repetition, rotation moment and qubit; any batch.
        ansatz: the circuit's layer, or its name.

    Returns:
        2^N probabilities, in the order of the basis states' indices; they sum to 1. In theta's
        precision, and in single precision at least: an autocast around it changes nothing.

    Example:
        >>> import math, torch
        >>> from qpa_exp.circuits.probabilities import probabilities
        >>> turned = torch.tensor([math.pi, 0.0]).view(1, 1, 2)
        >>> probabilities(turned).round().tolist()  # |00> turned to |10>, by the CNOT to |11>
        [0.0, 0.0, 0.0, 1.0]
    """
    if isinstance(ansatz, str):
        ansatz = ANSATZE[ansatz]
    batch, shape = theta.shape[:-3], theta.shape[-3:]
    theta = theta.reshape(-1, *shape)
    if torch.is_autocast_enabled(theta.device.type):
        theta = theta.float()
    with torch.autocast(theta.device.type, enabled=False):  # amplitudes stay precise
        found: Tensor = _Probabilities.apply(theta, ansatz)
    return found.view(*batch, -1)


class _Probabilities(torch.autograd.Function):
    """Angles (batch, layers, rotations, qubits) to probabilities (batch, 2^N)."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ansatz: Ansatz) -> Tensor:
        states = _engine(theta, ansatz).amplitudes(theta, ansatz)
        ctx.save_for_backward(theta, states)
        ctx.ansatz = ansatz
        if not states.is_complex():
            return states.square()
        return torch.view_as_real(states).square().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        theta, states = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return _engine(theta, ctx.ansatz).slopes(theta, ctx.ansatz, states, grad), None


def _engine(theta: Tensor, ansatz: Ansatz) -> ModuleType:
    return compiled_engine if compiled_engine.takes(theta, ansatz) else torch_engine
