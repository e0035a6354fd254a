"""The state vector in torch's own operations: any gates, on any device, of any number of qubits.

The circuit is applied gate by gate; gates that move basis states are one gather together. The
backward is the adjoint method (Jones and Gacon 2020, arXiv:2009.02823): it takes the gates back one
after the other instead of keeping every state, so its memory does not grow with the depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby

import torch
from jaxtyping import Complex, Float, Int32, Shaped
from torch import Tensor

from qpa_exp.circuits.ansatz import GATES, Ansatz, Gate, inverse_of, order_of

_PAULIS: dict[str, list[list[complex]]] = {
    "I": [[1, 0], [0, 1]],
    "X": [[0, 1], [1, 0]],
    "Y": [[0, -1j], [1j, 0]],
    "Z": [[1, 0], [0, -1]],
}


def pauli_matrix(letters: str) -> Complex[Tensor, "_ _"]:
    """Give the Kronecker product of Pauli matrices, one letter of ``IXYZ`` a qubit, complex128."""
    each = [
        torch.tensor(_PAULIS[letter], dtype=torch.complex128, device="cpu") for letter in letters
    ]
    return reduce(torch.kron, each)


def gate_matrix(name: str, angle: Float[Tensor, "*batch"]) -> Complex[Tensor, "*batch _ _"]:
    """Return the matrices of a gate, differentiable in ``angle``.

    Args:
        name: in :data:`GATES`.
        angle: in radians; where the gate has none, only the shape counts.

    Examples:
        >>> gate_matrix("ry", torch.tensor(torch.pi)).real.round().int().tolist()
        [[0, -1], [1, 0]]
    """
    kind = GATES[name]
    dtype = torch.complex128 if angle.dtype == torch.float64 else torch.complex64
    if kind.fixed is not None:
        fixed = torch.tensor(kind.fixed, dtype=dtype, device=angle.device)
        return fixed.expand(*angle.shape, *fixed.shape)
    assert kind.pauli is not None
    pauli = pauli_matrix(kind.pauli).to(angle.device, dtype)
    one = torch.eye(len(pauli), dtype=dtype, device=angle.device)
    half = angle[..., None, None] / 2
    matrix = torch.cos(half) * one - 1j * torch.sin(half) * pauli
    return _controlled(matrix) if kind.controlled else matrix


def generator_matrix(name: str) -> Complex[Tensor, "d d"]:
    """Return G of a gate that turns, in complex128: the slope of its matrix U is dU/dangle = G U.

    G is -i/2 P, with the gate's Pauli string P. In a controlled gate that is the block in which
    the control is 1; where it is 0, nothing turns and G is zero.
    """
    kind = GATES[name]
    assert kind.pauli is not None
    half = -0.5j * pauli_matrix(kind.pauli)
    return torch.nn.functional.pad(half, (len(half), 0) * 2) if kind.controlled else half


def _controlled(matrix: Complex[Tensor, "*batch d d"]) -> Complex[Tensor, "*batch _ _"]:
    size = matrix.shape[-1]
    whole = torch.nn.functional.pad(matrix, (size, 0, size, 0))
    idle = torch.arange(size, device=matrix.device)
    projector = torch.zeros(2 * size, 2 * size, dtype=matrix.dtype, device=matrix.device)
    projector[idle, idle] = 1
    return whole + projector


Angles = Float[Tensor, "batch layers rotations qubits"]
States = Shaped[Tensor, "batch states"]


@dataclass(frozen=True)
class _Permutation:
    """Gates that move basis states: where to read the new ones, and the old ones again."""

    order: Int32[Tensor, " states"]
    inverse: Int32[Tensor, " states"]


def amplitudes(theta: Angles, ansatz: Ansatz) -> States:
    """Return the amplitudes at the end."""
    batch, layers, _, n_qubits = theta.shape
    steps = _steps(ansatz, n_qubits, theta.device)
    matrices = _matrices(steps, theta, ansatz)
    states = theta.new_zeros(batch, 2**n_qubits, dtype=_dtype(theta, ansatz))
    states[:, 0] = 1
    for layer in range(layers):
        for place, step in enumerate(steps):
            if isinstance(step, _Permutation):
                states = states.index_select(1, step.order)
            else:
                moved = matrices[place][layer] @ lead(states, step.qubits)
                states = follow(moved, step.qubits)
    return states


def slopes(theta: Angles, ansatz: Ansatz, states: States, towards: States) -> Angles:
    """dL/dtheta from the amplitudes at the end, psi, and dL/dpsi.

    psi and its cotangent lambda = dL/dpsi go back side by side, as one batch; lambda is kept
    conjugated, so that a gate U is undone by U^dagger in psi and by U^T in lambda. The slope of an
    angle is Re <lambda| G |psi>, both taken right after its gate, with dU/dangle = G U.
    """
    batch, layers, _, n_qubits = theta.shape
    steps = _steps(ansatz, n_qubits, theta.device)
    undo = {
        place: torch.cat([matrices.conj(), matrices], dim=1).mT.contiguous()
        for place, matrices in _matrices(steps, theta, ansatz).items()
    }
    overlaps: dict[int, list[Tensor]] = {place: [] for place in undo}
    pair = torch.cat([states, towards.conj()])
    for layer in reversed(range(layers)):
        for place, step in reversed(list(enumerate(steps))):
            if isinstance(step, _Permutation):
                pair = pair.index_select(1, step.inverse)
                continue
            after = lead(pair, step.qubits)
            if step.angle is not None:
                overlaps[place].insert(0, after[batch:] @ after[:batch].mT)
            pair = follow(undo[place][layer] @ after, step.qubits)
    found = torch.zeros_like(theta)
    for place, of_layers in overlaps.items():
        gate = steps[place]
        if isinstance(gate, Gate) and gate.angle is not None:
            generator = _numbers(generator_matrix(gate.name), theta, ansatz)
            slope = (generator * torch.stack(of_layers, dim=1)).sum((-2, -1))
            found[:, :, gate.angle[1], gate.angle[2]] += slope.real
    return found


@lru_cache(maxsize=32)
def _steps(ansatz: Ansatz, n_qubits: int, device: torch.device) -> list[Gate | _Permutation]:
    """One repetition."""
    steps: list[Gate | _Permutation] = []
    listed = ansatz.gates(n_qubits, n_layers=1)
    for permutes, gates in groupby(listed, lambda gate: GATES[gate.name].permutes):
        if not permutes:
            steps += gates
            continue
        order = order_of(gates, n_qubits)
        with torch.inference_mode(False):  # kept for training, too
            both = [torch.from_numpy(o).to(device) for o in (order, inverse_of(order))]
        steps.append(_Permutation(*both))
    return steps


def _matrices(
    steps: list[Gate | _Permutation], theta: Angles, ansatz: Ansatz
) -> dict[int, Shaped[Tensor, "layers batch d d"]]:
    """Return the matrices of each step that is a gate, in all layers, by its place."""
    found = {}
    for place, gate in enumerate(steps):
        if isinstance(gate, Gate):
            angles = theta.new_zeros(theta.shape[1::-1])
            if gate.angle is not None:
                angles = theta[:, :, gate.angle[1], gate.angle[2]].T
            found[place] = _numbers(gate_matrix(gate.name, angles), theta, ansatz)
    return found


def _numbers(matrix: Tensor, theta: Tensor, ansatz: Ansatz) -> Tensor:
    """Where theta lies, and in the numbers that the circuit's amplitudes are."""
    matrix = matrix.real if ansatz.is_real else matrix
    return matrix.to(theta.device, _dtype(theta, ansatz)).contiguous()


def _dtype(theta: Tensor, ansatz: Ansatz) -> torch.dtype:
    return theta.dtype if ansatz.is_real else theta.dtype.to_complex()


def lead(
    states: Shaped[Tensor, "batch states"], qubits: tuple[int, ...], base: int = 2
) -> Shaped[Tensor, "batch d rest"]:
    """Return the states with these qubits, of ``base`` levels each, as their first axis."""
    tensor = _apart(states, base).movedim([1 + q for q in qubits], _first(qubits))
    return tensor.reshape(len(states), base ** len(qubits), -1)


def follow(
    leading: Shaped[Tensor, "batch d rest"], qubits: tuple[int, ...], base: int = 2
) -> States:
    """Return the inverse of :func:`lead`."""
    tensor = _apart(leading.flatten(1), base).movedim(_first(qubits), [1 + q for q in qubits])
    return tensor.reshape(len(leading), -1)


def _apart(states: States, base: int) -> Tensor:
    """Return an axis for each qubit."""
    n_qubits = (states.shape[1].bit_length() - 1) // (base.bit_length() - 1)
    return states.unflatten(1, [base] * n_qubits)


def _first(qubits: tuple[int, ...]) -> list[int]:
    return list(range(1, 1 + len(qubits)))
