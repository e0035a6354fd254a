"""A circuit's operations with the angles put in, forth and back.

On a GPU, of many qubits, and with gates of no special kind they are operations of torch's; else
:mod:`qpa_exp.circuits.compiled` takes their place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qpa_exp.circuits import compiled, kronecker
from qpa_exp.circuits.adjoint import Adjoint
from qpa_exp.circuits.ansatz import is_real
from qpa_exp.circuits.gates import gate_matrix
from qpa_exp.circuits.layouts import Layout, make_layout, permutation_index
from qpa_exp.circuits.program import Operation, Permutation, Rotations, compile_layer
from qpa_exp.circuits.single_gate import apply_single

Step = Callable[[Tensor, int], Tensor]
"""States and a layer's number to the states after one operation of that layer."""


class Program:
    """A circuit with its angles put in: what runs forth and back."""

    def __init__(self, theta: Float[Tensor, "batch layers angles"], ansatz: str, n_qubits: int):
        self.n_qubits, self.shape, self.device = n_qubits, theta.shape, theta.device
        self.dtype = theta.dtype if is_real(ansatz) else theta.dtype.to_complex()
        self.operations = compile_layer(ansatz, n_qubits)
        self.prepared = [_prepare(made, theta, self.dtype) for made in self.operations]

    def run(self) -> Shaped[Tensor, "batch states"]:
        """The amplitudes at the end."""
        batch, layers, _ = self.shape
        layout = make_layout(self.n_qubits)
        parts = zip(self.operations, self.prepared, strict=True)
        steps = [_step(layout, operation, made, batch, self.device) for operation, made in parts]
        states = layout.start(batch, self.dtype, self.device)
        for layer in range(layers):
            for step in steps:
                states = step(states, layer)
        return layout.flat(states)

    def slopes(
        self,
        theta: Float[Tensor, "batch layers angles"],
        states: Shaped[Tensor, "batch states"],
        grad: Float[Tensor, "batch states"],
    ) -> Float[Tensor, "batch layers angles"]:
        """dL/dtheta from the amplitudes at the end and dL/dp."""
        with torch.autocast(grad.device.type, enabled=False):
            adjoint = Adjoint(self.operations, self.prepared, theta, self.n_qubits)
            return adjoint.run(states, grad)


def make_program(
    theta: Float[Tensor, "batch layers angles"], ansatz: str, n_qubits: int
) -> Program | compiled.CompiledProgram:
    """The fastest way for these circuits: compiled, or torch's operations, which go anywhere."""
    if compiled.takes(theta, ansatz, n_qubits):
        return compiled.CompiledProgram(theta, ansatz, n_qubits)
    return Program(theta, ansatz, n_qubits)


def squared(states: Shaped[Tensor, "batch states"]) -> Float[Tensor, "batch states"]:
    """The amplitudes' probabilities."""
    return torch.view_as_real(states).square().sum(-1) if states.is_complex() else states.square()


def _prepare(operation: Operation, theta: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """An operation's matrices for all layers at once; a permutation has none."""
    if isinstance(operation, Permutation):
        return []
    by_layer = theta.transpose(0, 1)
    if isinstance(operation, Rotations):
        return kronecker.rotation_matrices(_angles(operation, by_layer), operation.axes, dtype)
    matrix = gate_matrix(operation.name, by_layer[..., operation.angle or 0])
    return [matrix if dtype.is_complex else matrix.real.contiguous()]


def _angles(operation: Rotations, theta: Tensor) -> Tensor:
    """The moment's angles of each qubit; 0 where a qubit is not turned."""
    if operation.places is not None:
        return theta[..., operation.places]
    turned = torch.tensor([place is not None for place in operation.angles], device=theta.device)
    return theta[..., [place or 0 for place in operation.angles]] * turned


def _step(
    layout: Layout,
    operation: Operation,
    prepared: list[Tensor],
    batch: int,
    device: torch.device,
) -> Step:
    """The operation as it acts in the circuit."""
    if isinstance(operation, Permutation):
        index = permutation_index(layout, operation, batch, device, inverse=False)
        return lambda states, layer: layout.permute(states, index)  # noqa: ARG005
    if isinstance(operation, Rotations):
        factors = layout.forth(prepared)
        return lambda states, layer: layout.rotate(states, factors[layer])
    matrices, qubits = prepared[0], operation.qubits
    return lambda states, layer: layout.shaped(
        apply_single(layout.flat(states), matrices[layer], qubits)
    )
