"""The generated vector, and the slices of it that stand where a method's tensors were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qpa_exp.generator import Generator


class GeneratedVector:
    """The vector that the tensors are cut from, made anew for each forward pass that is trained.

    Without gradients it is kept, and made again only when a parameter has changed. A loop that
    knows where an optimizer step begins and ends can have it made once for each: see
    :meth:`begin_step`.

    Attributes:
        sizes: of the tensors, in their order.
        make: gives the vector: the generator, or the same compiled.
        value: the vector as it is now, and ``pieces`` what it is cut into.
    """

    value: Float[Tensor, " m"]
    pieces: Sequence[Float[Tensor, " size"]]

    def __init__(self, generator: Generator, sizes: Sequence[int]) -> None:
        self.generator, self.sizes = generator, list(sizes)
        self.make: Callable[[], Tensor] = generator
        self._step: tuple[Tensor, Tensor] | None = None
        """While a step is open: the vector as it was generated, and the leaf that stands for it."""
        self._kept_for: tuple[bool, list[Tensor]] | None = None
        """The mode and the parameters that ``value`` is kept for; None for any other value."""
        self.settle()

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
        if torch.is_grad_enabled():
            self._set(self.make() if self._step is None else self._step[1])
            return
        now = self.generator.training, [p.detach() for p in self.generator.parameters()]
        if self._kept_for is None or not _same(self._kept_for, now):
            self._set(self.make())
            self._kept_for = now[0], [p.clone() for p in now[1]]

    def _set(self, value: Float[Tensor, " m"]) -> None:
        """Cut at once, so that the gradients of all pieces are put together at once, too."""
        with torch.set_grad_enabled(value.requires_grad):
            self.value, self.pieces = value, value.split(self.sizes)
        self._kept_for = None


def _same(one: tuple[bool, list[Tensor]], other: tuple[bool, list[Tensor]]) -> bool:
    pairs = zip(one[1], other[1], strict=True)
    return one[0] == other[0] and all(a.device == b.device and torch.equal(a, b) for a, b in pairs)


class Slice(nn.Module):
    """A parametrization: one tensor of the method, read from the generated vector.

    Under an anchor the tensor that PEFT itself initialised is added: init + G(theta) - G(theta_0).
    """

    def __init__(self, vector: GeneratedVector, place: int, shape: torch.Size) -> None:
        super().__init__()
        self.vector, self.place, self.shape = vector, place, shape

    def forward(self, initial: Tensor) -> Tensor:
        """``initial`` is PEFT's own tensor; the result has its shape and type."""
        piece = self.vector.pieces[self.place].view(self.shape)
        if self.vector.generator.config.anchor:
            return initial + piece.to(initial.dtype)
        return piece.to(initial.dtype)
