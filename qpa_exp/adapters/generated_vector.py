"""The generated vector, and the tensors of a method that are slices of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.errors import InputError
from qpa_exp.generator.generator import Generator


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
