"""A gate of no special kind on one or two qubits of a state vector."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits.gates import gate_matrix

States = Shaped[Tensor, "_ states"]


def apply_single(
    states: States, matrices: Shaped[Tensor, "_ d d"], qubits: tuple[int, ...]
) -> States:
    """Apply one (d, d) matrix a state to some of its qubits."""
    leading = torch.bmm(matrices, _lead(states, qubits))
    n_qubits = states.shape[1].bit_length() - 1
    tensor = leading.view(len(states), *[2] * n_qubits)
    back = tensor.movedim(list(range(1, 1 + len(qubits))), [1 + q for q in qubits])
    return back.reshape(states.shape)


def slope_of_single(
    name: str,
    qubits: tuple[int, ...],
    angle: Float[Tensor, " batch"],
    before: States,
    cotangent: States,
) -> Float[Tensor, " batch"]:
    """Re <lambda| dU/dangle |psi> with psi before the gate and lambda, conjugated, after it."""
    overlap = torch.bmm(_lead(cotangent, qubits), _lead(before, qubits).mT)
    with torch.enable_grad():
        turned = angle.detach().requires_grad_()
        matrix = gate_matrix(name, turned)
        matrix = matrix if overlap.is_complex() else matrix.real
        (slope,) = torch.autograd.grad((matrix * overlap).sum().real, turned)
    found: Tensor = slope
    return found


def _lead(states: States, qubits: tuple[int, ...]) -> Shaped[Tensor, "_ d rest"]:
    """The states with these qubits as their first axis."""
    n_qubits = states.shape[1].bit_length() - 1
    tensor = states.view(len(states), *[2] * n_qubits)
    front = tensor.movedim([1 + q for q in qubits], list(range(1, 1 + len(qubits))))
    return front.reshape(len(states), 2 ** len(qubits), -1)
