"""The generator: () -> the m parameters of a PEFT method, from a circuit and a mapping model."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.circuits.controls import FixedNumbers
from qpa_exp.config import QPAConfig
from qpa_exp.generator.features import FEATURES
from qpa_exp.generator.mappings import ACTIVATIONS, MAPPING_INITS, MAPPINGS
from qpa_exp.generator.rules import BLEND_TRAINED, VARIANTS, blend_widths, feature_name, fit


class RandomOrder(nn.Module):
    """Puts ``m`` numbers into an order that is drawn once, from torch's global stream.

    Attributes:
        places: where each number of the result comes from.
        back: where each number goes; behind them, zeros for numbers that are not read.
    """

    places: Int[Tensor, " m"]
    back: Int[Tensor, " at_least_m"]

    def __init__(self, m: int) -> None:
        super().__init__()
        places = torch.randperm(m)
        self.register_buffer("places", places.int(), persistent=False)
        self.register_buffer("back", torch.argsort(places).int(), persistent=False)

    def forward(self, numbers: Float[Tensor, " at_least_m"]) -> Float[Tensor, " m"]:
        """Return the first m of ``numbers`` in this order."""
        if len(self.back) < len(numbers):
            self.back = pad(self.back, (0, len(numbers) - len(self.back)))
        ordered: Tensor = _Ordered.apply(numbers, self.places, self.back)
        return ordered


class _Ordered(torch.autograd.Function):
    """Read in an order. The gradient is read in the opposite one: faster than being added up."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return numbers.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        found = grad.index_select(0, back)
        found[len(grad) :] = 0  # numbers that were not read
        return found, None, None


class Generator(nn.Module):
    """Generates ``m`` parameters from few trainable ones (Eq. 5 to 8).

    Chunk i holds ``n_mlp`` of them: the mapping model's output for the pair of basis state i, as
    N bits, and its probability. With ``config.window`` it reads the probabilities of the states
    that follow, too, and with several circuits all of that in each. The bits are written -1 and +1
    in every variant; the first layer has a bias, so it can express the same with 0 and 1. The most
    significant bit comes first, in the released code the least.

    Under ``config.variant="random"`` there is no circuit and there are no bits: a chunk's code are
    ``window`` normal numbers from its own place on, drawn once, which are never trained (random
    features, after Rahimi and Recht 2007). It is what a frozen circuit comes to, without one.

    ``config.anchor`` subtracts what the generator gave at its start, G(theta) - G(theta_0), so
    that the first vector is exactly zero. The start is rebuilt from ``config.seed``, so it costs
    no trainable parameter and no space in a checkpoint.

    Attributes:
        circuit: the circuit, with its angles ``theta``, or what stands in its place.
        mapping: the mapping model.
        estimator: what ``config.blend`` blends the probabilities with; else None.
        order: the random order of the parameters; None where they stand chunk after chunk.
        states: the basis state of each chunk where the order is fixed, and ``bits`` its bits.
        chunking: m, n_mlp, n_chunks and n_qubits.
        config: as it was given, and what that left open as the rule has it.
    """

    circuit: nn.Module
    states: Tensor
    bits: Tensor

    def __init__(self, m: int, config: QPAConfig) -> None:
        """Raise InputError where the circuit would need more qubits than its back end takes."""
        super().__init__()
        self.chunking, config = fit(m, config)
        self.config, n_qubits = config, self.chunking.n_qubits
        assert config.window is not None
        assert config.scale is not None
        ansatz, variant = ansatz_of(config), VARIANTS[config.variant]
        reads_feature = variant.circuit and ansatz.reads_feature
        self._feature = FEATURES[feature_name(config)] if reads_feature else None
        self._lowest_first, self._has_bits = variant.lowest_first, variant.circuit
        self._draws_states = draws = config.basis_order == "random"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if not variant.circuit:  # one more for each chunk, so that no two codes are alike
                self.circuit = FixedNumbers(torch.randn(self.chunking.n_chunks + config.window - 1))
            elif ansatz.has_circuit:  # first: it refuses what is too large
                self.circuit = Circuit(config, n_qubits)
            else:
                self.circuit = ansatz.make(config, n_qubits, self.chunking.n_chunks)
            # Draw as many numbers as ``ry`` has angles: a seed gives the same mapping model beside
            # every ansatz and control.
            torch.manual_seed(config.seed)
            torch.empty(config.n_circuits, config.n_layers, 1, n_qubits).uniform_()
            self.mapping = MAPPINGS[config.mapping].make(
                config, n_qubits if variant.circuit else 0, not (draws or self._lowest_first)
            )
            states = torch.arange(self.chunking.n_chunks)
            if draws or config.shuffle:
                # Drawn before the random order even where only that is read: so a seed has it.
                sample = torch.randperm(2**n_qubits)[: self.chunking.n_chunks]
                states = sample if draws else states
            self.order = RandomOrder(m) if config.shuffle else None
            self.estimator = self._make_estimator() if config.blend is not None else None
        # In evaluation a random order is one fixed sample: what is tested is what is exported.
        self.register_buffer("states", states, persistent=False)
        self.register_buffer("bits", self._write_bits(states), persistent=False)
        self._origin = [self._frozen_copy()] if config.anchor else []
        self._start: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Generator:
        """Keep 32 bits at least where a model is cast to 16: angles and probabilities need them."""

        def kept(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            narrow = made.is_floating_point() and made.dtype.itemsize < 4
            return tensor.to(made.device) if narrow else made

        applied: Generator = super()._apply(kept, recurse)
        return applied

    @property
    def n_trainable(self) -> int:
        """Angles of the circuit, weights and biases of the mapping model."""
        return sum(p.numel() for p in self.parameters())

    def forward(self) -> Float[Tensor, " m"]:
        """Return the generated parameters, in chunk order.

        Under ``anchor`` their change since the start.

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
        bits = self.bits if states is self.states else self._write_bits(states)
        chunks = self.mapping(bits.to(features.dtype), features).flatten()
        generated = chunks[: self.chunking.m] if self.order is None else self.order(chunks)
        return generated - generated.mean() if self.config.center else generated

    def _write_bits(self, states: Int[Tensor, " chunks"]) -> Float[Tensor, "chunks qubits"]:
        n_bits = self.chunking.n_qubits if self._has_bits else 0
        return basis_bits(states, n_bits, lowest_first=self._lowest_first)

    def _read(
        self, measured: Float[Tensor, "*circuits states"]
    ) -> Float[Tensor, "circuits states"]:
        """Give what the mapping model reads of the probabilities, of the order of 1 or smaller."""
        measured = measured.reshape(self.config.n_circuits, -1)
        if self.estimator is not None:
            measured = self.estimator(measured)
        if self._feature is None:
            return measured
        return self._feature.read(measured, self.chunking.n_qubits)

    def _make_estimator(self) -> nn.Module:
        from qpa_exp.generator.blending import StateEstimator

        config, n_qubits = self.config, self.chunking.n_qubits
        assert config.window is not None
        # Row i of the probabilities is read for the i-th chunk, whichever state labels it.
        used = torch.arange(min(2**n_qubits, self.chunking.n_chunks + config.window - 1))
        weight = None if config.blend == BLEND_TRAINED else float(str(config.blend))
        return StateEstimator(blend_widths(config, n_qubits), basis_bits(used, n_qubits), weight)

    def _draw_states(self) -> Int[Tensor, " chunks"]:
        if not (self.training and self._draws_states):
            return self.states
        drawn = torch.randperm(2**self.chunking.n_qubits, device=self.states.device)
        return drawn[: self.chunking.n_chunks]

    # --- the anchor ---------------------------------------------------------------------------

    def _frozen_copy(self) -> Generator:
        """Return the generator as it is now, never trained. Kept in a list: it is no submodule.

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
        """Take the start that ``seed`` gives: parameters, fixed numbers, the order, the anchor.

        ``config.seed`` stays.
        """
        other = Generator(self.chunking.m, dataclasses.replace(self.config, seed=seed))
        other.to(self.states.device)
        self.load_state_dict(other.state_dict())
        if not any(True for _ in self.circuit.parameters()):  # nobody holds on to a part of it
            self.circuit = other.circuit
        self.states, self.bits, self.order = other.states, other.bits, other.order
        self._origin, self._start = other._origin, None

    def start_norm(self) -> float:
        """Return the Euclidean norm of G(theta_0), a fingerprint of the start.

        0 without an anchor.
        """
        if not self.config.anchor:
            return 0.0
        return float(self._start_at(self.states).double().norm())


def basis_bits(
    states: Int[Tensor, " chunks"], n_qubits: int, *, lowest_first: bool = False
) -> Float[Tensor, "chunks qubits"]:
    """Return the basis states' N bits as -1 and +1.

    Qubit 1 (the most significant) comes first; under ``lowest_first``, as in the released code,
    the least significant does.
    """
    places = torch.arange(n_qubits, device=states.device)
    bits = (states[:, None] >> (places if lowest_first else places.flip(0))) & 1
    return (2 * bits - 1).float()


# --- the layers of ``qpa.mapping=mlp``: the first reads windows of features -----------------------

_WORTH_IT = 2**18
"""Numbers in the windows written out, below which that takes less time."""


def linear_in_windows(
    bits: Float[Tensor, "chunks qubits"],
    features: Float[Tensor, "circuits states"],
    weight: Float[Tensor, "n_out n_in"],
    bias: Float[Tensor, " n_out"],
    window: int,
    *,
    in_order: bool,
) -> Float[Tensor, "at_least_chunks n_out"]:
    """Give the linear layer of, for each chunk i, its bits and ``window`` features from place i on.

    Written out, n chunks that read ``window`` numbers each are a matrix of n times window numbers,
    nearly all of them copies. But s neighbours read only s + window - 1 numbers between them: they
    become one row, and the weight stands in a matrix s times, each time a place further down. The
    product with that gives the outputs of all s chunks, side by side.

    Each circuit's features are a ring: the first follows the last. The layer reads them circuit
    by circuit, behind the bits: n_in = qubits + circuits * window.

    Args:
        bits: of each chunk, the most significant first.
        features: of all basis states.
        weight: of the layer.
        bias: of the layer.
        window: how many features of a circuit a chunk reads.
        in_order: ``bits`` are those of 0, 1, 2 and so on.

    Returns:
        The outputs for the chunks, and behind them, sometimes, some that are nobody's.
    """
    n_chunks, n_qubits = bits.shape
    n_low = _low_bits(n_chunks, len(weight), window) if in_order else 0
    if n_low == 0:
        read = in_windows(features, n_chunks, window)
        return linear(torch.cat([bits, *read], dim=1), weight, bias)
    together, n_high = 2**n_low, max(0, n_qubits - n_low)  # there may be no bits at all
    # Chunks of one row differ in their last bits alone, and those are the same in every row.
    high, low = bits[::together, :n_high], bits[:together, n_high:]
    every_row = linear(low, weight[:, n_high:n_qubits], bias).view(1, -1)
    read = in_windows(features, len(high), window + together - 1, step=together)
    spread = [_spread(w, together) for w in weight[:, n_qubits:].split(window, dim=1)]
    left = torch.cat([high, *read, high.new_ones(len(high), 1)], dim=1)
    right = torch.cat([weight[:, :n_high].T.repeat(1, together), *spread, every_row])
    return (left @ right).view(-1, len(weight))


def in_windows(
    features: Float[Tensor, "circuits states"], n: int, window: int, step: int = 1
) -> Float[Tensor, "circuits n window"]:
    """``window`` numbers from every ``step``-th place on; the first follows the last."""
    length = (n - 1) * step + window
    turns = -(-length // features.shape[-1])
    line = torch.cat([features] * turns, dim=-1) if turns > 1 else features
    return line[:, :length].unfold(-1, window, step)


def _low_bits(n_chunks: int, n_out: int, window: int) -> int:
    """log2 of how many chunks make a row: as leave both matrices about equally small."""
    if n_chunks * window < _WORTH_IT:
        return 0
    together = min(math.sqrt(n_chunks / n_out), window)
    return round(math.log2(together)) if together >= 2 else 0


def _spread(weight: Float[Tensor, "n_out window"], times: int) -> Float[Tensor, "longer outputs"]:
    """Return the transposed weight ``times`` times side by side, each time one row further down."""
    rows, longer = pad(weight.T, (0, 0, times - 1, times - 1)), weight.shape[1] + times - 1
    places = torch.arange(longer, device=weight.device)[:, None]
    places = places + torch.arange(times - 1, -1, -1, device=weight.device)
    return rows.index_select(0, places.flatten()).view(longer, -1)


class MappingModel(nn.Sequential):
    """An MLP with biases; the paper's is N + 1 -> ``TABLE_1`` -> n_mlp.

    The activation stands between the layers, never after the last. The first layer reads a chunk's
    N bits and, of each circuit, some features from the chunk's own on.

    Args:
        widths: of what it reads, of the hidden layers, and of what it gives for a chunk.
        config: with nothing left open.
        in_order: chunk i has the bits of i, the most significant first.
    """

    def __init__(self, widths: Sequence[int], config: QPAConfig, *, in_order: bool) -> None:
        assert config.window is not None
        assert config.scale is not None
        layers: list[nn.Module] = []
        between = ACTIVATIONS[config.activation]
        for wide, narrow in pairwise(widths):
            if layers and between is not None:
                layers.append(getattr(nn, between)())
            layers.append(nn.Linear(wide, narrow))
        super().__init__(*layers)
        self.window, self.in_order, self.scale = config.window, in_order, config.scale
        if draw := MAPPING_INITS[config.mapping_init]:  # a signal keeps its size through the layers
            for layer in self:
                if isinstance(layer, nn.Linear):
                    getattr(nn.init, draw)(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(  # type: ignore[override]
        self, bits: Float[Tensor, "chunks qubits"], features: Float[Tensor, "circuits states"]
    ) -> Float[Tensor, "at_least_chunks n_out"]:
        """Give the parameters of each chunk, from its bits and the features of all basis states."""
        first, *others = self
        weights = self._weights(first)
        x = linear_in_windows(bits, features, *weights, self.window, in_order=self.in_order)
        for layer in others:
            x = linear(x, *self._weights(layer)) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def _weights(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Weight and bias; those of the last layer are scaled, which are fewer than its outputs."""
        assert isinstance(layer, nn.Linear)
        if layer is not self[-1] or self.scale == 1:
            return layer.weight, layer.bias
        return self.scale * layer.weight, self.scale * layer.bias
