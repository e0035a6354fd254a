"""The generator: () -> the m parameters of a PEFT method, from a circuit and a mapping model."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from qpa_exp.circuits.ansatz import ansatz_of
from qpa_exp.circuits.circuit import Circuit
from qpa_exp.circuits.controls import FixedNumbers
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError
from qpa_exp.generator.features import FEATURES
from qpa_exp.generator.mappings import ACTIVATIONS, MAPPING_INITS, MAPPINGS
from qpa_exp.generator.rules import BLEND_TRAINED, VARIANTS, blend_widths, feature_name, fit


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw and build in here from ``seed``, in float32 on the CPU; outside nothing has changed.

    torch's default type and device, its random streams and its inference mode are put aside. The
    meta device stays: what is built there has a shape and no numbers.

    Args:
        seed: of torch's CPU stream. No other device's stream is touched.

    Examples:
        >>> import torch
        >>> from qpa_exp.generator.generator import drawn_from
        >>> with drawn_from(seed=0):
        ...     torch.rand(2)
        tensor([0.4963, 0.7682])
    """
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), torch.inference_mode(False):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)


class RandomOrder(nn.Module):
    """Puts ``m`` numbers into an order that is drawn once, from torch's global stream.

    Attributes:
        places: where each number of the result comes from.
    """

    places: Int[Tensor, " m"]

    def __init__(self, m: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.randperm(m).int(), persistent=False)

    def forward(self, numbers: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Return the numbers in this order."""
        return numbers.index_select(0, self.places)


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
        """Draw from ``config.seed``, on the CPU and in float32, whatever torch's defaults are.

        Raises:
            InputError: the circuit would need more qubits than its back end takes.
        """
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
        with drawn_from(config.seed):
            if not variant.circuit:  # one more for each chunk, so that no two codes are alike
                self.circuit = FixedNumbers(torch.randn(self.chunking.n_chunks + config.window - 1))
            elif ansatz.has_circuit:  # first: it refuses what is too large
                self.circuit = Circuit(config, n_qubits)
            else:
                self.circuit = ansatz.make(config, n_qubits, self.chunking.n_chunks)
            # Draw as many numbers as ``ry`` has angles: a seed gives the same mapping model beside
            # every ansatz and control.
            torch.default_generator.manual_seed(config.seed)
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
        generated = self.mapping(bits.to(features.dtype), features).flatten()[: self.chunking.m]
        generated = generated if self.order is None else self.order(generated)
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
    @torch.inference_mode(False)  # kept for training, too
    def _start_at(self, states: Int[Tensor, " chunks"]) -> Float[Tensor, " m"]:
        """G(theta_0) for these basis states; computed once where their order is fixed."""
        if states is not self.states:
            return self._origin[0].to(self.bits)._generate(states)
        if self._start is None or not _are_alike(self._start, self.bits):
            self._start = self._origin[0].to(self.bits)._generate(states)
        return self._start

    def restart(self, seed: int) -> None:
        """Take the start that ``seed`` gives: parameters, fixed numbers, the order, the anchor.

        ``config.seed`` stays.
        """
        other = Generator(self.chunking.m, dataclasses.replace(self.config, seed=seed))
        other.to(self.bits)
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


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype


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


# --- the vector, and the tensors that are cut from it ------------------------------------------


class GeneratedVector:
    """The vector that the tensors are cut from, made anew for each forward pass that is trained.

    Without gradients it is kept, and made again only when a parameter has changed. A loop that
    knows where an optimizer step begins and ends can have it made once for each: see
    :meth:`begin_step`. A copy, by ``copy.deepcopy`` for example, has no step open.

    Attributes:
        sizes: of the tensors, in their order.
        make: gives the vector: the generator, or the same compiled.
        value: the vector as it is now, and ``pieces`` what it is cut into.
        held: while it is set, ``value`` stays as it is: a weight has it merged in, for example.
    """

    value: Float[Tensor, " m"]
    pieces: Sequence[Float[Tensor, " size"]]

    def __init__(
        self, generator: Generator, sizes: Sequence[int], held: Float[Tensor, " m"] | None = None
    ) -> None:
        self.generator, self.sizes = generator, list(sizes)
        self.make: Callable[[], Tensor] = generator
        self.held = False
        self._step: tuple[Tensor, Tensor] | None = None
        """While a step is open: the vector as it was generated, and the leaf that stands for it."""
        self._kept_for: tuple[bool, list[Tensor]] | None = None
        """The mode and the parameters that ``value`` is kept for; None for any other value."""
        self._made_from: list[nn.Parameter] = []
        self._versions: list[int] = []
        """How often each parameter had been changed in place when ``value`` was made."""
        if held is None:
            self.settle()
        else:
            self._set(held)
            self.held = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is within a graph: it cannot be copied."""
        held = self.value.detach() if self.held else None
        return {"generator": self.generator, "sizes": self.sizes, "held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the vector anew."""
        self.__init__(**state)  # type: ignore[misc]

    def begin_step(self) -> None:
        """Make the vector, unless a step is open already.

        Until :meth:`end_step` every backward pass ends at it, and its gradients add up.
        """
        if self._step is None:
            generated = self.make()
            self._step = generated, generated.detach().clone().requires_grad_()
        self._set(self._step[1])

    def end_step(self) -> None:
        """Take what has added up through the generator, to the gradients of its parameters."""
        if self._step is None:
            return
        (generated, leaf), self._step = self._step, None
        if leaf.grad is not None:
            generated.backward(leaf.grad)
        self._set(leaf.detach())

    def compile(self, mode: str) -> None:
        """Compile the generator and try it; it stays as it was where that fails."""
        training = self.generator.training
        self.make = torch.compile(self.generator.train(), mode=mode)
        try:
            with torch.random.fork_rng(devices=[]):
                self.begin_step()
                self.value.sum().backward()
                self.end_step()
        except Exception:
            self.make, self._step = self.generator, None
            raise
        finally:
            self.generator.zero_grad(set_to_none=True)
            self.generator.train(training)
            self.settle()

    def settle(self) -> None:
        """Make ``value`` that of evaluation, whatever the mode: a random order's one sample."""
        mode = self.generator.training
        self.generator.eval()
        try:
            with torch.no_grad():
                self._set(self.make())
        finally:
            self.generator.train(mode)

    def refresh(self) -> None:
        """Bring ``value`` up to date with the generator's parameters."""
        if self.held:
            return
        if torch.is_grad_enabled():
            self._set(self.make() if self._step is None else self._step[1])
            return
        mode = self.generator.training
        parameters: list[Tensor] = list(self.generator.parameters())
        if self._kept_for is None or not _same(self._kept_for, (mode, parameters)):
            self._set(self.make())
            self._kept_for = mode, [p.detach().clone() for p in parameters]

    def piece(self, place: int) -> Float[Tensor, " size"]:
        """Return one piece, of a vector that is brought up to date where it is not.

        A forward pass refreshes first. Whatever else reads a tensor, a merge or an adapter that a
        call names for example, gets what the parameters give now, too.
        """
        compiled = torch.compiler.is_compiling()  # then the forward pass is all that there is
        if not (compiled or self.held) and self._versions != _versions(self._made_from):
            self.refresh()
        return self.pieces[place]

    @contextmanager
    def put_back(self, value: Float[Tensor, " m"], pieces: Sequence[Tensor]) -> Iterator[None]:
        """Within this context a vector is read that was ``value`` before."""
        now = self.value, self.pieces, self.held
        self.value, self.pieces, self.held = value, pieces, True
        try:
            yield
        finally:
            self.value, self.pieces, self.held = now

    def _set(self, value: Float[Tensor, " m"]) -> None:
        """Cut at once, so that the gradients of all pieces are put together at once, too."""
        if self.held:
            return
        with torch.set_grad_enabled(value.requires_grad):
            self.value, self.pieces = value, value.split(self.sizes)
        self._kept_for = None
        self._made_from = list(self.generator.parameters())
        self._versions = _versions(self._made_from)


def _same(one: tuple[bool, list[Tensor]], other: tuple[bool, list[Tensor]]) -> bool:
    pairs = zip(one[1], other[1], strict=True)
    return one[0] == other[0] and all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


def _versions(parameters: Sequence[Tensor]) -> list[int]:
    """Autograd's own count of changes in place; tensors of inference mode have none."""
    return [0 if p.is_inference() else p._version for p in parameters]


class Slice(nn.Module):
    """A parametrization: one tensor of the method, read from the generated vector.

    Under an anchor the tensor that PEFT itself initialised is added: init + G(theta) - G(theta_0).
    """

    def __init__(self, vector: GeneratedVector, place: int, shape: torch.Size) -> None:
        super().__init__()
        self.vector, self.place, self.shape = vector, place, shape

    def forward(self, initial: Tensor) -> Tensor:
        """Return what replaces ``initial``, PEFT's own tensor, in the same shape and type."""
        piece = self.vector.piece(self.place).view(self.shape)
        if self.vector.generator.config.anchor:
            return initial + piece.to(initial.dtype)
        return piece.to(initial.dtype)


def as_read_now(layer: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Note the vectors that a layer reads, for a backward pass that computes it once more.

    Until then another forward pass may have made others, of random numbers for example.

    Args:
        layer: any module; one without generated tensors reads none.

    Returns:
        What gives a context in which the layer reads the same vectors.
    """
    vectors = {id(m.vector): m.vector for m in layer.modules() if isinstance(m, Slice)}
    seen = [(vector, vector.value, vector.pieces) for vector in vectors.values()]
    graph = any(value.requires_grad and not value.is_leaf for _, value, _ in seen)
    trained = torch.is_grad_enabled() and graph

    @contextmanager
    def again() -> Iterator[None]:
        if trained and not torch.is_grad_enabled():
            raise InputError(
                "Checkpointing with use_reentrant=True goes backward through the generator once a "
                "layer, and torch allows that once: give "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        with ExitStack() as stack:
            for vector, value, pieces in seen:
                stack.enter_context(vector.put_back(value, pieces))
            yield

    return again
