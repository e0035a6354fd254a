"""Exact probabilities of a noisy device, differentiable in the angles.

The circuit is transpiled once for the device. Every gate becomes a channel, followed by the noise
model's error of that gate on those qubits; a readout error becomes a confusion matrix. A state of n
qubits is the vector of tr(P rho) over the 4^n Pauli strings P (the first qubit the most significant
digit, I X Y Z its values), and a channel a real matrix on it. What acts on one qubit is multiplied
together first, so only the two-qubit gates pass over the whole state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from qpa_exp.circuits.ansatz import GATES, Ansatz, ansatz_of
from qpa_exp.circuits.recorded_devices import NOISES, NoiseOfGates, noise_model, record_of, snapshot
from qpa_exp.circuits.simulator import Simulator
from qpa_exp.circuits.to_qiskit import QISKIT, angle_places, measured_circuit, transpile_for
from qpa_exp.circuits.torch_engine import follow, gate_matrix, lead, pauli_matrix
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from qiskit import QuantumCircuit
    from qiskit_aer.noise import NoiseModel


@dataclass(frozen=True)
class Angle:
    """An angle of the transpiled circuit: ``offset`` plus a multiple of some entries of theta."""

    offset: float
    slopes: dict[int, float]
    """The factor of each place in theta, flattened."""


@dataclass(frozen=True)
class Step:
    """A gate, and the channel that follows it; ``qubits`` counted from 0 in the simulation."""

    name: str
    qubits: tuple[int, ...]
    angle: Angle | None = None
    noise: Tensor | None = None


@dataclass
class NoisyProgram:
    """A transpiled circuit on its active qubits alone."""

    n_active: int
    steps: list[Step]
    reading: list[tuple[int, Tensor]] = field(default_factory=list)
    """Where each qubit of the circuit ended, and its confusion matrix."""


class DensityMatrix(Simulator):
    """Simulates the density matrix of the circuit under ``config.noise``; N up to about 10."""

    label = "density matrix"
    reads = ("qpa.noise",)

    def prepare(self) -> None:
        """Transpile, and read the noise model: seconds."""
        _ = self.program

    @cached_property
    @torch.inference_mode(False)  # kept for training, too
    def program(self) -> NoisyProgram:
        """The circuit as steps."""
        device = NOISES[self.config.noise]
        if device is None:
            return ideal_program(self.ansatz, self.n_qubits, self.config.n_layers)
        places = angle_places(self.ansatz, self.n_qubits, self.config.n_layers)
        return noisy_program(self.transpiled(), noise_model(device), places)

    @classmethod
    def record_versions(cls, config: QPAConfig) -> dict[str, str]:
        """Qiskit's packages, which transpile for a device, and the day of the device's record."""
        device = NOISES[config.noise]
        return {} if device is None else QISKIT.versions() | record_of(device)

    @classmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Autograd keeps the state at every two-qubit gate, and a copy with its axes moved."""
        listed = ansatz_of(config).gates(n_qubits, config.n_layers)
        pairs = sum(len(gate.qubits) == 2 for gate in listed)
        return 4**n_qubits * 4 * (2 * pairs + 6)

    def transpiled(self) -> QuantumCircuit:
        """Return the circuit as it runs on the device, with its measurements."""
        QISKIT.check(f"qpa.noise={self.config.noise}")
        circuit = measured_circuit(self.ansatz, self.n_qubits, self.config.n_layers)
        return transpile_for(circuit, snapshot(str(NOISES[self.config.noise])))

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """Return the probabilities of the 2^N outcomes, readout errors included."""
        batch = theta.shape[:-3]
        return run(self.program, theta.reshape(-1, theta.shape[-3:].numel())).view(*batch, -1)


ENTRY = DensityMatrix


# --- from a circuit to steps ------------------------------------------------------------------


def ideal_program(ansatz: Ansatz, n_qubits: int, n_layers: int) -> NoisyProgram:
    """Return the circuit as it is, on a device without noise."""
    shape, steps = ansatz.theta_shape(n_qubits, n_layers), []
    for gate in ansatz.gates(n_qubits, n_layers):
        angle = None
        if gate.angle is not None:
            angle = Angle(0.0, {int(np.ravel_multi_index(gate.angle, shape)): 1.0})
        steps.append(Step(gate.name, gate.qubits, angle))
    ideal = torch.eye(2, dtype=torch.float64)
    return NoisyProgram(n_qubits, steps, [(qubit, ideal) for qubit in range(n_qubits)])


def noisy_program(
    circuit: QuantumCircuit, model: NoiseModel, places: dict[str, int]
) -> NoisyProgram:
    """Return a transpiled and measured circuit under a noise model.

    Args:
        circuit: in gates of ``GATES``; the highest classical bit is the first qubit's.
        model: any of Qiskit Aer's with errors on one and two qubits.
        places: from the name of a parameter to its place in theta, flattened.
    """
    noise = NoiseOfGates(model)
    after = cache(noise.after)
    steps: list[Step] = []
    reading: dict[int, tuple[int, Tensor]] = {}
    simulated: dict[int, int] = {}
    for instruction in circuit.data:
        name = instruction.operation.name
        if name in ("barrier", "delay"):
            continue
        device = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        qubits = tuple(simulated.setdefault(qubit, len(simulated)) for qubit in device)
        if name == "measure":
            bit = circuit.find_bit(instruction.clbits[0]).index
            reading[bit] = (qubits[0], noise.confusion(device[0]))
        else:
            angle = _angle(instruction.operation.params, places)
            steps.append(Step(name, qubits, angle, after(name, device)))
    return NoisyProgram(len(simulated), steps, [reading[bit] for bit in sorted(reading)[::-1]])


def _angle(params: list[Any], places: dict[str, int]) -> Angle | None:
    """Give a gate's angle as a linear expression of theta, which is all that a transpiler makes."""
    if not params:
        return None
    (expression,) = params
    if isinstance(expression, float | int):
        return Angle(float(expression), {})
    used = list(expression.parameters)
    slopes = {places[p.name]: float(expression.gradient(p)) for p in used}
    return Angle(float(expression.bind(dict.fromkeys(used, 0.0))), slopes)


# --- from steps to probabilities --------------------------------------------------------------


def run(program: NoisyProgram, theta: Float[Tensor, "batch angles"]) -> Float[Tensor, "batch _"]:
    """Return the probabilities of all outcomes."""
    zero = theta.new_tensor([1.0, 0.0, 0.0, 1.0])
    state = theta.new_ones(1)
    for _ in range(program.n_active):
        state = torch.kron(state, zero)
    state = state.expand(len(theta), -1)
    for qubits, channel in _fused(program, theta):
        state = follow(channel @ lead(state, qubits, base=4), qubits, base=4)
    return _read(state, program)


def _read(
    state: Float[Tensor, "batch strings"], program: NoisyProgram
) -> Float[Tensor, "batch outcomes"]:
    """Measure the qubits, the first into the highest bit; the others are traced out."""
    measured = [qubit for qubit, _ in program.reading]
    others = [qubit for qubit in range(program.n_active) if qubit not in measured]
    values = lead(state, (*others, *measured), base=4)
    values = values.reshape(len(state), 4 ** len(others), -1)[:, 0]  # I on what is traced out
    # Half the sum and half the difference of tr(I rho) and tr(Z rho): the outcomes 0 and 1.
    outcomes = state.new_tensor([[0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.0, -0.5]])
    for _, confusion in program.reading:  # the leading axis is read, and moves to the end
        read = confusion.to(state) @ outcomes
        values = (values.reshape(len(state), 4, -1).mT @ read.mT).reshape(len(state), -1)
    return values


def _fused(
    program: NoisyProgram, theta: Float[Tensor, "batch angles"]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield the two-qubit channels, each with the one-qubit channels before it.

    Then what is left.
    """
    waiting: dict[int, Tensor] = {}
    idle = torch.eye(4, dtype=theta.dtype, device=theta.device)
    for step, channel in zip(program.steps, _channels(program.steps, theta), strict=True):
        if len(step.qubits) == 1:
            (qubit,) = step.qubits
            waiting[qubit] = channel @ waiting[qubit] if qubit in waiting else channel
            continue
        first, second = (waiting.pop(qubit, idle) for qubit in step.qubits)
        both = first[..., :, None, :, None] * second[..., None, :, None, :]
        yield step.qubits, channel @ both.reshape(*both.shape[:-4], 16, 16)
    for qubit, channel in waiting.items():
        yield (qubit,), channel


def _channels(steps: Sequence[Step], theta: Float[Tensor, "batch angles"]) -> list[Tensor]:
    """Each step's channel with its noise, (16 or 4 squared), batched where theta enters it."""
    channels: list[Tensor] = [theta] * len(steps)
    for name in {step.name for step in steps}:
        of_name = [place for place, step in enumerate(steps) if step.name == name]
        if GATES[name].has_angle:
            angles = _angles([steps[place].angle for place in of_name], theta)
            turned: Sequence[Tensor] = unitary_channel(gate_matrix(name, angles)).unbind(1)
        else:
            turned = [unitary_channel(gate_matrix(name, theta.new_zeros(())))] * len(of_name)
        for place, channel in zip(of_name, turned, strict=True):
            noise = steps[place].noise
            channels[place] = channel if noise is None else noise.to(channel) @ channel
    return channels


def unitary_channel(matrix: Complex[Tensor, "*batch d d"]) -> Float[Tensor, "*batch _ _"]:
    """Write rho -> U rho U^dagger as a matrix, differentiable.

    Entry (i, j) is tr(P_i U P_j U^dagger) / d.
    """
    strings = _pauli_strings(matrix.shape[-1].bit_length() - 1).to(matrix.device, matrix.dtype)
    moved = matrix.unsqueeze(-3) @ strings @ matrix.mH.unsqueeze(-3)
    return torch.einsum("iab,...jba->...ij", strings, moved).real / matrix.shape[-1]


@cache
@torch.inference_mode(False)  # kept for training, too
def _pauli_strings(n_qubits: int) -> Complex[Tensor, "strings d d"]:
    """All Pauli strings of n qubits, in order."""
    return torch.stack([pauli_matrix("".join(p)) for p in product("IXYZ", repeat=n_qubits)])


def _angles(
    angles: Sequence[Angle | None], theta: Float[Tensor, "batch angles"]
) -> Float[Tensor, "batch gates"]:
    """Return the gates' angles: linear in theta."""
    known = [angle for angle in angles if angle is not None]
    table = torch.zeros(theta.shape[1], len(known), dtype=theta.dtype)
    for column, angle in enumerate(known):
        for place, slope in angle.slopes.items():
            table[place, column] = slope
    offsets = theta.new_tensor([angle.offset for angle in known])
    return offsets + theta @ table.to(theta.device)
