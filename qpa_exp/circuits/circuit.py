"""Circuits as a module: their angles, and the probabilities that are measured."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qpa_exp.circuits import compiled_engine, torch_engine
from qpa_exp.circuits.ansatz import ANSATZE, Ansatz, side_by_side
from qpa_exp.circuits.gradients import GRADIENTS, Estimate, Measure
from qpa_exp.circuits.simulator import check_circuit, make_simulator, no_slopes
from qpa_exp.config import QPAConfig, count_shots
from qpa_exp.errors import InputError


def sample_frequencies(
    probabilities: Float[Tensor, "*batch states"], shots: int, stream: torch.Generator | None = None
) -> Float[Tensor, "*batch states"]:
    """Return the frequencies of the basis states in ``shots`` measurements: multinomial counts /
    shots.

    The counts are drawn by halving: how many of a half's shots fall into its own upper half is
    binomial, so all 2^N counts take N draws, however many shots there are. Drawn on the CPU, so
    that a seed gives the same sample beside any accelerator.

    Args:
        probabilities: of 2^N basis states, summing to 1; not differentiated.
        shots: measurements of each circuit.
        stream: a CPU generator; None = torch's global stream.
    """
    exact = probabilities.detach().to("cpu", torch.float64).clamp_min(0)
    masses = [exact]
    while masses[-1].shape[-1] > 1:
        masses.append(masses[-1].unflatten(-1, (-1, 2)).sum(-1))
    counts = torch.full_like(masses[-1], shots)
    for halves in reversed(masses[:-1]):
        upper = halves[..., 1::2] / (halves[..., 0::2] + halves[..., 1::2])
        in_upper = torch.binomial(counts, upper.nan_to_num(0.0).clamp(0, 1), generator=stream)
        counts = torch.stack([counts - in_upper, in_upper], dim=-1).flatten(-2)
    return (counts / shots).to(probabilities)


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

    Raises:
        InputError: theta's shape is not that of the ansatz' angles, ``ansatz.theta_shape``; or a
            slope in theta is differentiated once more.

    Examples:
        >>> import math, torch
        >>> from qpa_exp.circuits.circuit import probabilities
        >>> turned = torch.tensor([math.pi, 0.0]).view(1, 1, 2)
        >>> probabilities(turned).round().tolist()  # |00> turned to |10>, by the CNOT to |11>
        [0.0, 0.0, 0.0, 1.0]
    """
    if isinstance(ansatz, str):
        ansatz = ANSATZE[ansatz]
    batch = theta.shape[:-3]
    if not theta.is_floating_point() or theta.dtype.itemsize < 4:
        theta = theta.float()
    angles = theta.reshape(math.prod(batch), *theta.shape[-3:])
    with torch.autocast(theta.device.type, enabled=False):  # amplitudes stay precise
        found: Tensor = FinalState.apply(angles, ansatz, True)
    return found.view(*batch, found.shape[-1])


class FinalState(torch.autograd.Function):
    """Angles (batch, layers, rotations, qubits) to what circuits end in, (batch, 2^N).

    Amplitudes, real where the ansatz is; ``squared``, probabilities. Differentiable once; not for
    half precision or autocast.

    Raises:
        InputError: the angles' shape is not that of the ansatz; or a slope is differentiated.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, ansatz: Ansatz, squared: bool) -> Tensor:
        """Return the state at the end of each circuit."""
        _check_shape(theta, ansatz)  # the compiled loops would read past their ends
        states = _engine(theta, ansatz).amplitudes(theta, ansatz)
        ctx.save_for_backward(theta, states)
        ctx.ansatz, ctx.squared = ansatz, squared
        if not squared:
            return states
        return torch.view_as_real(states).square().sum(-1) if states.is_complex() else states**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute the slopes by the adjoint method."""
        theta, states = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            towards = 2 * grad * states if ctx.squared else grad
            slopes = _engine(theta, ctx.ansatz).slopes(theta, ctx.ansatz, states, towards)
        return _once(slopes, theta, grad), None, None


class _Slopes(torch.autograd.Function):
    """Slopes that say so where they are differentiated once more.

    torch's own ``once_differentiable`` says so for some losses alone: of a loss that is linear in
    the probabilities it gives second derivatives of zero.
    """

    @staticmethod
    def forward(ctx: Any, slopes: Tensor, theta: Tensor, grad: Tensor) -> Tensor:
        return slopes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise InputError(
            "The circuit's slopes have no derivative: its probabilities can be differentiated "
            "once, so give a loss without second derivatives in the angles."
        )


def _once(slopes: Tensor, theta: Tensor, grad: Tensor) -> Tensor:
    found: Tensor = _Slopes.apply(slopes, theta, grad) if torch.is_grad_enabled() else slopes
    return found


def _check_shape(theta: Tensor, ansatz: Ansatz) -> None:
    found, (_, rotations, _) = tuple(theta.shape[1:]), ansatz.theta_shape(1, 1)
    if len(found) != 3 or found[1] != rotations:
        raise InputError(
            f"The angles of each circuit have the shape {found}: give (layers, {rotations}, "
            "qubits), which this ansatz needs."
        )


def _engine(theta: Tensor, ansatz: Ansatz) -> ModuleType:
    return compiled_engine if compiled_engine.takes(theta, ansatz) else torch_engine


_BATCH_BYTES = 2**29
"""The memory for one batch of shifted circuits; what does not fit goes into another batch."""


class Circuit(nn.Module):
    """``n_layers`` repetitions of an ansatz on ``n_qubits`` qubits, starting from |0...0>.

    ``config.n_circuits`` of them run side by side, each with angles of its own; one alone, which
    is the paper's, has no leading axis for it. Under ``config.share_angles`` all have the same
    angles, and circuit c starts from |c>: a basis state that the first rotations, turned by pi
    more, make of |0...0>, up to a phase.

    With ``config.shots``, what it gives are frequencies of that many measurements: in training
    mode a new sample at every call, from torch's global stream; in evaluation mode one fixed
    sample, seeded by ``config.seed``, of ``config.final_shots`` measurements.

    Attributes:
        theta: angles (n_circuits, n_layers, rotations in a layer, n_qubits) in radians, without
            the first axis where they are shared; uniform in (-pi, pi) at the start; of an ansatz
            that is not trained a buffer, which the seed rebuilds.
        evaluations: how many circuits have been evaluated, shifted ones included; a tensor, so
            that a compiled generator counts without being compiled again.
    """

    theta: Float[Tensor, "*circuits layers rotations qubits"]
    turned: Float[Tensor, "*circuits layers rotations qubits"] | None
    evaluations: Int[Tensor, ""]

    def __init__(self, config: QPAConfig, n_qubits: int) -> None:
        """Draws theta from torch's global stream.

        Raises:
            InputError: more qubits than the back end or the memory takes, keys that do not go
                together, a package that is missing.
        """
        super().__init__()
        check_circuit(config, slopes=False)  # it may never be asked for them
        self.config = config
        self.simulator = make_simulator(config, n_qubits)
        shape: tuple[int, ...] = self.simulator.ansatz.theta_shape(n_qubits, config.n_layers)
        if not config.share_angles:
            shape = side_by_side(config, *shape)
        theta = torch.empty(shape).uniform_(-math.pi, math.pi)
        if self.simulator.ansatz.trains_circuit:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta, persistent=False)
        turned = _starting_turns(config, shape) if config.share_angles else None
        self.register_buffer("turned", turned, persistent=False)
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.int64), persistent=False)
        self._kept: tuple[Tensor, int | None, Tensor] | None = None
        """Angles that are not trained, how often they had been changed, and their probabilities."""
        self._estimate = self._gradient()
        if not theta.is_meta:
            self.simulator.prepare()

    @property
    def n_qubits(self) -> int:
        """The paper's N."""
        return self.simulator.n_qubits

    @property
    def n_shots(self) -> int | None:
        """Measurements of a circuit in the mode that it is in; None = exact."""
        shots = self.config.shots
        if not self.training and self.config.final_shots is not None:
            shots = self.config.final_shots
        return count_shots(shots, self.n_qubits)

    # A compiler of the caller has nothing to gain here: it goes on behind the circuit.
    @torch.compiler.disable
    def forward(self) -> Float[Tensor, "*circuits states"]:
        """Return the 2^N basis states' probabilities in each circuit, or their frequencies.

        Raises:
            InputError: slopes are asked for, and ``qpa.gradient`` cannot give them.
        """
        if not self.simulator.ansatz.trains_circuit and self.n_shots is None:
            return self._fixed()
        angles = self.theta if self.turned is None else self.theta + self.turned
        if not (torch.is_grad_enabled() and angles.requires_grad):
            return self._measure(angles)
        if self._estimate is not None:
            estimated: Tensor = _Estimated.apply(angles, self._measure, self._estimate)
            return estimated
        if self.simulator.samples:
            raise no_slopes(self.config)
        return self._measure(angles)

    def _fixed(self) -> Float[Tensor, "*circuits states"]:
        """Return the exact probabilities of angles that are never trained, kept until they
        change.
        """
        version = None if self.theta.is_inference() else self.theta._version
        if self._kept is None or self._kept[0] is not self.theta or self._kept[1] != version:
            with torch.inference_mode(False), torch.no_grad():  # kept for training, too
                turned = 0.0 if self.turned is None else self.turned
                self._kept = self.theta, version, self._measure(self.theta + turned)
        return self._kept[2]

    def _gradient(self) -> Estimate | None:
        method = GRADIENTS[self.config.gradient]
        if method.estimate is None:
            return None
        one = self.simulator.bytes_needed(self.config, self.n_qubits) * self.config.n_circuits
        return method.estimate(self.config, _BATCH_BYTES // one)

    def _measure(
        self, theta: Float[Tensor, "*batch layers rotations qubits"]
    ) -> Float[Tensor, "*batch states"]:
        self.evaluations = self.evaluations + math.prod(theta.shape[:-3])
        shots = self.n_shots
        if self.simulator.samples:
            assert shots is not None  # the config has been checked
            return self.simulator.sample(theta.detach(), shots, self._sample_seed())
        probabilities = self.simulator(theta)
        if shots is None:
            return probabilities
        frequencies = sample_frequencies(probabilities, shots, self._stream())
        # A straight-through estimator: a sample has no slope, so it takes that of its expectation,
        # which is the exact distribution.
        return probabilities + (frequencies - probabilities).detach()

    def _stream(self) -> torch.Generator | None:
        if self.training:
            return None
        return torch.Generator("cpu").manual_seed(self.config.seed)

    def _sample_seed(self) -> int:
        """Return a seed for what draws by itself: from torch's stream, or the fixed one."""
        return int(torch.randint(2**31, (), device="cpu")) if self.training else self.config.seed


class _Estimated(torch.autograd.Function):
    """What is measured, with slopes that are estimated by measuring again, many at once."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, measure: Measure, estimate: Estimate) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.measure, ctx.estimate = measure, estimate
        measured: Tensor = measure(theta.detach())
        return measured

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        with torch.no_grad():
            slopes = ctx.estimate(ctx.measure, theta, grad)
        return _once(slopes, theta, grad), None, None


def _starting_turns(
    config: QPAConfig, shape: tuple[int, ...]
) -> Float[Tensor, "*circuits layers rotations qubits"]:
    """Half a turn for each first rotation whose qubit is 1 in the circuit's number, else 0."""
    n_qubits = shape[-1]
    if config.n_circuits > 2**n_qubits:
        raise InputError(
            f"qpa.n_circuits={config.n_circuits} with qpa.share_angles=true needs as many basis "
            f"states to start from, and {n_qubits} qubits have {2**n_qubits}: give at most that, "
            "or lower qpa.n_mlp."
        )
    places = torch.arange(n_qubits - 1, -1, -1)
    turned = torch.zeros(config.n_circuits, *shape)
    turned[:, 0, 0] = math.pi * ((torch.arange(config.n_circuits)[:, None] >> places) & 1)
    return turned.view(side_by_side(config, *shape))
