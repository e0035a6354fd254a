"""Exact simulation of the circuit, fast enough to sit in a training step.

Rotations of many qubits are a few small matrix products (:mod:`qpa_exp.circuits.kronecker`), a
CNOT chain is one gather, and a circuit of R_Y alone stays real. The backward is the adjoint
method (:mod:`qpa_exp.circuits.adjoint`).

The basis state |b_1 b_2 ... b_N> has the index with b_1 as its most significant bit.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from qpa_exp.circuits import opaque
from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.running import make_program, squared
from qpa_exp.circuits.simulator import Simulator


class Statevector(Simulator):
    """The default back end."""

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """|<i|psi(theta)>|^2 for every basis state i."""
        return probabilities(theta, self.ansatz)

    @property
    def bytes_needed(self) -> int:
        """The pair of states and its copies in the backward, the chain's indices, the slopes."""
        amplitude = 4 if is_real(self.ansatz) else 8
        return 2**self.n_qubits * (7 * amplitude + 2 * 4 + 3 * 4)


BACKEND = Statevector


def probabilities(
    theta: Float[Tensor, "*batch layers rotations qubits"], ansatz: str = "ry"
) -> Float[Tensor, "*batch states"]:
    """|<i|psi(theta)>|^2 for every basis state i (Eq. 1), differentiable once in theta.

    Args:
        theta: angles in radians, one for each repetition, rotation moment and qubit; any batch.
        ansatz: the circuit's layer, a name of ``ANSATZE``.

    Returns:
        2^N probabilities, in the order of the basis states' indices; they sum to 1.
    """
    batch, shape = theta.shape[:-3], theta.shape[-3:]
    flat = theta.reshape(-1, shape[0], shape[1] * shape[2])
    if torch.is_autocast_enabled(theta.device.type):
        with torch.autocast(theta.device.type, enabled=False):  # amplitudes stay precise
            return _evaluate(flat.float(), ansatz, shape[2]).view(*batch, -1)
    return _evaluate(flat, ansatz, shape[2]).view(*batch, -1)


def _evaluate(theta: Tensor, ansatz: str, n_qubits: int) -> Tensor:
    if torch.compiler.is_compiling():
        return opaque.probabilities(theta, ansatz, n_qubits)
    found: Tensor = _Probabilities.apply(theta, ansatz, n_qubits)
    return found


class _Probabilities(torch.autograd.Function):
    """Angles (batch, layers, angles of a layer) to probabilities (batch, 2^N)."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ansatz: str, n_qubits: int) -> Tensor:
        program = make_program(theta, ansatz, n_qubits)
        states = program.run()
        ctx.save_for_backward(theta, states)
        ctx.program = program
        return squared(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        theta, states = ctx.saved_tensors
        return ctx.program.slopes(theta, states, grad), None, None
