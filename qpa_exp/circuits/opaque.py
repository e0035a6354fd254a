"""The circuit as one operation that ``torch.compile`` does not look into.

Its many small steps would take minutes to compile and come out no faster: what they need is to be
launched together, which a CUDA graph around the operation does as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.running import make_program, squared

_Pair = tuple[Tensor, Tensor]


def _forward(theta: Tensor, ansatz: str, n_qubits: int) -> _Pair:
    states = make_program(theta, ansatz, n_qubits).run()
    return squared(states), states.clone()


def _forward_shapes(theta: Tensor, ansatz: str, n_qubits: int) -> _Pair:
    dtype = theta.dtype if is_real(ansatz) else theta.dtype.to_complex()
    shape = (theta.shape[0], 2**n_qubits)
    return theta.new_empty(shape), theta.new_empty(shape, dtype=dtype)


def _backward(theta: Tensor, states: Tensor, grad: Tensor, ansatz: str, n_qubits: int) -> Tensor:
    return make_program(theta, ansatz, n_qubits).slopes(theta, states, grad.contiguous())


def _backward_shapes(theta: Tensor, *_: object) -> Tensor:
    return torch.empty_like(theta)


_TYPES = "str ansatz, SymInt n_qubits"
_FORTH = torch.library.custom_op(
    "qpa_exp::circuit",
    _forward,
    mutates_args=(),
    schema=f"(Tensor theta, {_TYPES}) -> (Tensor, Tensor)",
)
_FORTH.register_fake(_forward_shapes)
_BACK = torch.library.custom_op(
    "qpa_exp::circuit_back",
    _backward,
    mutates_args=(),
    schema=f"(Tensor theta, Tensor states, Tensor grad, {_TYPES}) -> Tensor",
)
_BACK.register_fake(_backward_shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, str, int], output: _Pair) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.ansatz, ctx.n_qubits = inputs[1:]


def _slopes(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    theta, states = ctx.saved_tensors
    return _BACK(theta, states, grad, ctx.ansatz, ctx.n_qubits), None, None


_FORTH.register_autograd(_slopes, setup_context=_keep)


def probabilities(theta: Tensor, ansatz: str, n_qubits: int) -> Tensor:
    """Angles (batch, layers, angles of a layer) to probabilities (batch, 2^N)."""
    found: Tensor = _FORTH(theta, ansatz, n_qubits)[0]
    return found
