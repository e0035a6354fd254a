"""The generator: () -> the m parameters of a PEFT method, from a circuit and a mapping model."""

from __future__ import annotations

import copy
import dataclasses
import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from qpa_exp.circuits import make_circuit
from qpa_exp.config import QPAConfig
from qpa_exp.generator.chunking import Chunking
from qpa_exp.generator.mapping import MappingModel
from qpa_exp.generator.order import RandomOrder

log = logging.getLogger(__name__)

# The released code's squashing of the probabilities (its beta, gamma and alpha).
_BETA, _GAMMA, _ALPHA = 0.6, 0.1, 0.15


class Generator(nn.Module):
    """Generates ``m`` parameters from few trainable ones (Eq. 5 to 8).

    Chunk i holds ``n_mlp`` of them: the mapping model's output for the pair of basis state i, as
    N bits, and its probability. With ``config.window`` it reads the probabilities of the states
    that follow, too, and with several circuits all of that in each. The bits are written -1 and +1
    in every variant; the first layer has a bias, so it can express the same with 0 and 1.

    ``config.anchor`` subtracts what the generator gave at its start, G(theta) - G(theta_0), so
    that the first vector is exactly zero. The start is rebuilt from ``config.seed``, so it costs
    no trainable parameter and no space in a checkpoint.

    Attributes:
        circuit: the circuit, with its angles ``theta``, or a control in its place.
        mapping: the mapping model.
        order: the random order of the parameters; None where they stand chunk after chunk.
        states: the basis state of each chunk where the order is fixed, and ``bits`` its bits.
        chunking: m, n_mlp, n_chunks and n_qubits.
    """

    states: Tensor
    bits: Tensor

    def __init__(self, m: int, config: QPAConfig) -> None:
        """Raises InputError where the circuit would need more qubits than its back end takes."""
        super().__init__()
        self.chunking = Chunking(m, config.n_mlp)
        n_qubits = self.chunking.n_qubits
        self.config = config = _fitted(config, n_qubits)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.circuit = make_circuit(config, n_qubits, self.chunking.n_chunks)
            # Beside every ansatz and control the mapping model starts as it does beside ``ry``.
            torch.manual_seed(config.seed)
            torch.empty(config.n_circuits, config.n_layers, 1, n_qubits).uniform_()
            self.mapping = MappingModel(
                n_qubits,
                config.mapping_hidden,
                config.n_mlp,
                config.activation,
                config.mapping_init,
                n_circuits=config.n_circuits,
                window=config.window,
                in_order=not self._draws_states,
                scale=config.scale,
            )
            sample = torch.randperm(2**n_qubits)[: self.chunking.n_chunks]
            self.order = RandomOrder(m) if config.shuffle else None
        # In evaluation a random order is one fixed sample: what is tested is what is exported.
        fixed = torch.arange(self.chunking.n_chunks)
        states = sample if self._draws_states else fixed
        self.register_buffer("states", states, persistent=False)
        self.register_buffer("bits", basis_bits(states, n_qubits), persistent=False)
        self._origin = [self._frozen_copy()] if config.anchor else []
        self._start: Tensor | None = None

    @property
    def n_trainable(self) -> int:
        """Angles of the circuit, weights and biases of the mapping model."""
        return sum(p.numel() for p in self.parameters())

    def forward(self) -> Float[Tensor, " m"]:
        """The generated parameters, in chunk order; under ``anchor`` their change since the start.

        A random basis order is drawn afresh at every call in training mode, from torch's global
        random stream.
        """
        states = self._draw_states()
        # Probabilities of 2^-N do not survive the 16 bits of a surrounding autocast.
        with torch.autocast(states.device.type, enabled=False):
            generated = self._generate(states)
            return generated - self._start_at(states) if self.config.anchor else generated

    def _generate(self, states: Int[Tensor, " chunks"]) -> Float[Tensor, " m"]:
        features = self._read(self.circuit())
        # Under a random order too, row i reads the i-th probability: the released code's pairing.
        chunks = self.mapping(self._bits(states).to(features.dtype), features).flatten()
        generated = chunks[: self.chunking.m] if self.order is None else self.order(chunks)
        return generated - generated.mean() if self.config.center else generated

    def _bits(self, states: Int[Tensor, " chunks"]) -> Float[Tensor, "chunks qubits"]:
        return self.bits if states is self.states else basis_bits(states, self.circuit.n_qubits)

    def _read(
        self, measured: Float[Tensor, "*circuits states"]
    ) -> Float[Tensor, "circuits states"]:
        """What the mapping model reads of the probabilities, of the order of 1 or smaller."""
        measured = measured.reshape(self.config.n_circuits, -1)
        if self.config.ansatz == "gaussian":
            return measured
        if self.config.squash or self.config.feature == "squashed":
            return squash(measured)
        if self.config.feature == "probability":
            return measured
        logarithm = torch.log1p(measured * 2**self.circuit.n_qubits)
        if self.config.feature == "normal":
            return layer_norm(logarithm, logarithm.shape[-1:])
        return logarithm

    @property
    def _draws_states(self) -> bool:
        return self.config.basis_order == "random"

    def _draw_states(self) -> Int[Tensor, " chunks"]:
        if not (self.training and self._draws_states):
            return self.states
        drawn = torch.randperm(2**self.circuit.n_qubits, device=self.states.device)
        return drawn[: self.chunking.n_chunks]

    # --- the anchor ---------------------------------------------------------------------------

    def _frozen_copy(self) -> Generator:
        """The generator as it is now, never trained. Kept in a list: it is no submodule.

        It stays in evaluation mode: with finite shots the start is its one fixed sample, which an
        evaluated generator that was never trained repeats exactly.
        """
        frozen = copy.deepcopy(self, {id(self.order): self.order})
        frozen.requires_grad_(False)
        return frozen.eval()

    @torch.no_grad()
    def _start_at(self, states: Int[Tensor, " chunks"]) -> Float[Tensor, " m"]:
        """G(theta_0) for these basis states; computed once where their order is fixed."""
        device = states.device
        if self._start is None or self._start.device != device or states is not self.states:
            origin = self._origin[0].to(device)
            start = origin._generate(states)
            if states is not self.states:
                return start
            self._start = start
        return self._start

    def restart(self, seed: int) -> None:
        """Take the start that ``seed`` gives: parameters, the random order, and the anchor.

        ``config.seed`` stays; a control's fixed numbers do, too.
        """
        other = Generator(self.chunking.m, dataclasses.replace(self.config, seed=seed))
        other.to(self.states.device)
        self.load_state_dict(other.state_dict())
        self.states, self.bits, self.order = other.states, other.bits, other.order
        self._origin, self._start = other._origin, None

    def start_norm(self) -> float:
        """The Euclidean norm of G(theta_0), a fingerprint of the start; 0 without an anchor."""
        if not self.config.anchor:
            return 0.0
        return float(self._start_at(self.states).double().norm())


def _fitted(config: QPAConfig, n_qubits: int) -> QPAConfig:
    """No more circuits of the same angles than basis states to start from; nor a wider window."""
    most = 2**n_qubits
    if config.share_angles and config.n_circuits > most:
        log.warning(
            "qpa.n_circuits=%d share their angles, so each needs a basis state to start from: the "
            "%d qubits have %d, and that is how many circuits there are.",
            config.n_circuits, n_qubits, most,
        )  # fmt: skip
        config = dataclasses.replace(config, n_circuits=most)
    if config.window > most:
        log.warning(
            "qpa.window=%d is wider than the %d basis states of %d qubits: a chunk reads the "
            "probability of each of them once.",
            config.window, most, n_qubits,
        )  # fmt: skip
        config = dataclasses.replace(config, window=most)
    return config


def basis_bits(states: Int[Tensor, " chunks"], n_qubits: int) -> Float[Tensor, "chunks qubits"]:
    """The basis states' N bits as -1 and +1, qubit 1 (the most significant) first."""
    places = torch.arange(n_qubits - 1, -1, -1, device=states.device)
    bits = (states[:, None] >> places) & 1
    return (2 * bits - 1).float()


def squash(probabilities: Float[Tensor, "*circuits states"]) -> Float[Tensor, "*circuits states"]:
    """(beta tanh(gamma 2^(N-1) p))^alpha minus its mean over all 2^N states: the released code.

    The power's slope is infinite at p = 0; the smallest normal number stands in for zero, which
    keeps the gradient finite, and moves that value by 2e-6.
    """
    scaled = _GAMMA * (probabilities.shape[-1] / 2) * probabilities
    squashed = (_BETA * torch.tanh(scaled)).clamp_min(torch.finfo(scaled.dtype).tiny) ** _ALPHA
    return squashed - squashed.mean(-1, keepdim=True)
