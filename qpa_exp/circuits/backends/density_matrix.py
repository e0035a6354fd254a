"""Exact probabilities of a noisy device, differentiable in the angles.

The circuit is transpiled once for the device. Every gate becomes a channel, followed by the noise
model's error of that gate on those qubits; a readout error becomes a confusion matrix. Channels
are real matrices over Pauli strings (:mod:`qpa_exp.circuits.channels`): what acts on one qubit is
multiplied together first, so only the two-qubit gates pass over the whole state of 4^N values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from qpa_exp.circuits.ansatz import Ansatz
from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.circuits.channels import DeviceNoise, unitary_channel
from qpa_exp.circuits.gate_matrices import gate_matrix
from qpa_exp.circuits.gates import GATES
from qpa_exp.circuits.recorded_devices import NOISES, noise_model, record_of, snapshot
from qpa_exp.circuits.simulator import Packages, Simulator
from qpa_exp.circuits.to_qiskit import QISKIT, angle_places, measured_circuit, transpile_for
from qpa_exp.config import QPAConfig

if TYPE_CHECKING:
    from qiskit import QuantumCircuit
    from qiskit_aer.noise import NoiseModel

# Half the sum and half the difference of tr(I rho) and tr(Z rho): the outcomes 0 and 1.
_READ = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.0, -0.5]], dtype=torch.float64)


@dataclass(frozen=True)
class Angle:
    """An angle of the transpiled circuit: ``offset`` plus a multiple of some entries of theta."""

    offset: float
    slopes: dict[int, float]
    """From a place in theta, flattened, to its factor."""


@dataclass(frozen=True)
class Step:
    """A gate, and the channel that follows it; ``qubits`` counted from 0 in the simulation."""

    name: str
    qubits: tuple[int, ...]
    angle: Angle | None
    noise: Tensor | None


@dataclass
class NoisyProgram:
    """A transpiled circuit on its active qubits alone."""

    n_active: int
    steps: list[Step]
    reading: list[tuple[int, Tensor]] = field(default_factory=list)
    """For each qubit of the circuit, where it ended, and its confusion matrix."""


class DensityMatrix(Simulator):
    """Of the circuit under ``config.noise``; N up to about 10."""

    label = "density matrix"
    reads = ("qpa.noise",)

    def prepare(self) -> None:
        """Transpile, and read the noise model: seconds."""
        _ = self.program

    @cached_property
    def program(self) -> NoisyProgram:
        """The circuit as steps."""
        device = NOISES[self.config.noise]
        if device is None:
            return ideal_program(self.ansatz, self.n_qubits, self.config.n_layers)
        return noisy_program(self.transpiled(), noise_model(device), self._places())

    @classmethod
    def packages(cls, config: QPAConfig) -> Packages | None:
        """Qiskit transpiles for a device, and holds its record."""
        return None if NOISES[config.noise] is None else QISKIT

    @classmethod
    def record_versions(cls, config: QPAConfig) -> dict[str, str]:
        """Qiskit's packages, and the day of the device's record."""
        return super().record_versions(config) | record_of(NOISES[config.noise])

    @classmethod
    def bytes_needed(cls, config: QPAConfig, n_qubits: int) -> int:
        """Autograd keeps the state at every two-qubit gate, and a copy with its axes moved."""
        listed = ANSATZE[config.ansatz].gates(n_qubits, config.n_layers)
        pairs = sum(len(gate.qubits) == 2 for gate in listed)
        return 4**n_qubits * 4 * (2 * pairs + 6)

    def transpiled(self) -> QuantumCircuit:
        """The circuit as it runs on the device, with its measurements."""
        QISKIT.check(f"qpa.noise={self.config.noise}")
        circuit = measured_circuit(self.ansatz, self.n_qubits, self.config.n_layers)
        return transpile_for(circuit, snapshot(str(NOISES[self.config.noise])))

    def _places(self) -> dict[str, int]:
        """From the name of a parameter to its place in theta, flattened."""
        _, rotations, qubits = self.ansatz.theta_shape(self.n_qubits, self.config.n_layers)
        places = angle_places(self.ansatz, self.n_qubits, self.config.n_layers)
        return {n: (layer * rotations + r) * qubits + q for n, (layer, r, q) in places.items()}

    def __call__(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        """The probabilities of the 2^N outcomes, readout errors included."""
        batch = theta.shape[:-3]
        return run(self.program, theta.reshape(-1, theta.shape[-3:].numel())).view(*batch, -1)


ENTRY = DensityMatrix


# --- from a circuit to steps ------------------------------------------------------------------


def ideal_program(ansatz: Ansatz, n_qubits: int, n_layers: int) -> NoisyProgram:
    """The circuit as it is, on a device without noise."""
    _, rotations, _ = ansatz.theta_shape(n_qubits, n_layers)
    steps = []
    for gate in ansatz.gates(n_qubits, n_layers):
        angle = None
        if gate.angle is not None:
            layer, rotation, qubit = gate.angle
            angle = Angle(0.0, {(layer * rotations + rotation) * n_qubits + qubit: 1.0})
        steps.append(Step(gate.name, gate.qubits, angle, None))
    ideal = torch.eye(2, dtype=torch.float64)
    return NoisyProgram(n_qubits, steps, [(qubit, ideal) for qubit in range(n_qubits)])


def noisy_program(
    circuit: QuantumCircuit, model: NoiseModel, places: dict[str, int]
) -> NoisyProgram:
    """A transpiled and measured circuit under a noise model.

    Args:
        circuit: in gates of ``GATES``; the highest classical bit is the first qubit's.
        model: any of Qiskit Aer's with errors on one and two qubits.
        places: from the name of a parameter to its place in theta, flattened.
    """
    noise = DeviceNoise(model)
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
            continue
        angle = _angle(instruction.operation.params, places)
        steps.append(Step(name, qubits, angle, noise.after(name, device)))
    return NoisyProgram(len(simulated), steps, [reading[bit] for bit in sorted(reading)[::-1]])


def _angle(params: list[Any], places: dict[str, int]) -> Angle | None:
    """A gate's angle as a linear expression of theta, which is all that a transpiler makes."""
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
    """The probabilities of all outcomes."""
    state = _State(program.n_active, theta)
    for qubits, channel in _fused(program, theta):
        state.apply(qubits, channel)
    return state.read(program.reading)


def _fused(
    program: NoisyProgram, theta: Float[Tensor, "batch angles"]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The two-qubit channels, each with the one-qubit channels before it; then what is left."""
    waiting: dict[int, Tensor] = {}
    idle = torch.eye(4, dtype=theta.dtype, device=theta.device)
    for step, channel in zip(program.steps, _channels(program, theta), strict=True):
        if len(step.qubits) == 1:
            (qubit,) = step.qubits
            waiting[qubit] = channel @ waiting[qubit] if qubit in waiting else channel
            continue
        first, second = (waiting.pop(qubit, idle) for qubit in step.qubits)
        yield step.qubits, channel @ _outer(first, second)
    for qubit, channel in waiting.items():
        yield (qubit,), channel


def _outer(first: Tensor, second: Tensor) -> Tensor:
    spread = first[..., :, None, :, None] * second[..., None, :, None, :]
    return spread.reshape(*spread.shape[:-4], 16, 16)


def _channels(program: NoisyProgram, theta: Float[Tensor, "batch angles"]) -> list[Tensor]:
    """Each step's channel with its noise, (16 or 4 squared), batched where theta enters it."""
    channels: list[Tensor] = [theta] * len(program.steps)
    for name in {step.name for step in program.steps}:
        of_name = [place for place, step in enumerate(program.steps) if step.name == name]
        if not GATES[name].has_angle:
            fixed = unitary_channel(gate_matrix(name, theta.new_zeros(())))
            for place in of_name:
                channels[place] = fixed
            continue
        angles = _angles([program.steps[place].angle for place in of_name], theta)
        turned = unitary_channel(gate_matrix(name, angles)).unbind(1)
        for place, channel in zip(of_name, turned, strict=True):
            channels[place] = channel
    return [_with_noise(c, step.noise) for c, step in zip(channels, program.steps, strict=True)]


def _with_noise(channel: Tensor, noise: Tensor | None) -> Tensor:
    return channel if noise is None else noise.to(channel) @ channel


def _angles(
    angles: Iterable[Angle | None], theta: Float[Tensor, "batch angles"]
) -> Float[Tensor, "batch gates"]:
    """The gates' angles: linear in theta."""
    known = [angle for angle in angles if angle is not None]
    table = torch.zeros(theta.shape[1], len(known), dtype=theta.dtype)
    for column, angle in enumerate(known):
        for place, slope in angle.slopes.items():
            table[place, column] = slope
    offsets = torch.tensor([angle.offset for angle in known], dtype=theta.dtype)
    return offsets.to(theta.device) + theta @ table.to(theta.device)


class _State:
    """tr(P rho) of every Pauli string P, (batch, 4^n), with its qubits in some order."""

    def __init__(self, n_qubits: int, theta: Float[Tensor, "batch angles"]) -> None:
        one = theta.new_tensor([1.0, 0.0, 0.0, 1.0])
        state = theta.new_ones(1)
        for _ in range(n_qubits):
            state = torch.outer(state, one).flatten()
        self.values = state.expand(len(theta), -1)
        self.order = list(range(n_qubits))

    def apply(self, qubits: tuple[int, ...], channel: Tensor) -> None:
        """Apply a channel to one or two qubits, which lead afterwards."""
        self._lead(list(qubits))
        batch, size = len(self.values), channel.shape[-1]
        leading = self.values.reshape(batch, size, -1)
        self.values = (channel @ leading).reshape(batch, -1)

    def read(self, reading: list[tuple[int, Tensor]]) -> Float[Tensor, "batch outcomes"]:
        """Measure the listed qubits, the first into the highest bit; the others are traced out."""
        measured = [qubit for qubit, _ in reading]
        others = [qubit for qubit in self.order if qubit not in measured]
        self._lead(others + measured)
        batch = len(self.values)
        values = self.values.reshape(batch, 4 ** len(others), -1)[:, 0]  # I on what is traced out
        for _, confusion in reading:  # the leading axis is read, and moves to the end
            read = (confusion @ _READ).to(values)
            values = (values.reshape(batch, 4, -1).mT @ read.mT).reshape(batch, -1)
        return values

    def _lead(self, qubits: list[int]) -> None:
        order = qubits + [qubit for qubit in self.order if qubit not in qubits]
        if order == self.order:
            return
        axes = [1 + self.order.index(qubit) for qubit in order]
        tensor = self.values.reshape(len(self.values), *[4] * len(order))
        self.values = tensor.permute(0, *axes).reshape(len(self.values), -1)
        self.order = order
