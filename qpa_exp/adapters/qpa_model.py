"""A language model whose PEFT tensors are generated instead of trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from qpa_exp.adapters import formats as files
from qpa_exp.adapters.adapted import AdaptedModel, ClassicalModel, save_generator
from qpa_exp.adapters.catalogue import check_method
from qpa_exp.adapters.peft_model import (
    build_peft_model,
    checkpoint_activations,
    make_peft_config,
    trainable_tensors,
    whole_modules,
)
from qpa_exp.config import Config, QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS, check_generator


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
        mode = self.generator.training
        parameters: list[Tensor] = list(self.generator.parameters())
        if self._kept_for is None or not _same(self._kept_for, (mode, parameters)):
            self._set(self.make())
            self._kept_for = mode, [p.detach().clone() for p in parameters]

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


class QPAModel(AdaptedModel):
    """A frozen language model, a PEFT method on it, and the generator of the method's tensors.

    Its only trainable parameters are the generator's, and those of modules that PEFT trains whole
    beside a method, as a classifier's new head. Build it with :func:`get_qpa_model`.
    """

    generator: Generator

    def __init__(self, peft_model: PeftModel, config: QPAConfig) -> None:
        super().__init__(peft_model)
        named = trainable_tensors(peft_model)
        if not named:
            raise InputError(
                f"{self.peft_config.peft_type} has no tensors to generate on this model: "
                "give other peft.target_modules."
            )
        sizes = [p.numel() for _, p in named]
        self.generator = Generator(sum(sizes), config).to(peft_model.device)
        self._vector = GeneratedVector(self.generator, sizes)
        self._slots = [self._slot(name) for name, _ in named]
        for _, tensor in named:
            tensor.requires_grad_(False)
        self._parametrize()
        self.train(self.training)  # not peft_model.training: that is off by now

    def _slot(self, name: str) -> tuple[str, nn.Module, str]:
        """(full name, the module that holds the tensor, its name there)."""
        owner, _, leaf = name.rpartition(".")
        return name, self.peft_model.get_submodule(owner), leaf

    def _parametrize(self) -> None:
        """Let every tensor of the method read its slice of the generated vector."""
        for place, (_, module, leaf) in enumerate(self._slots):
            piece = Slice(self._vector, place, getattr(module, leaf).shape)
            parametrize.register_parametrization(module, leaf, piece, unsafe=True)

    def _freeze_initial(self) -> None:
        """PEFT's own tensors are never trained; PEFT marks them when it enables its layers."""
        for _, module, leaf in self._slots:
            module.parametrizations[leaf].original.requires_grad_(False)  # type: ignore[union-attr, index]

    @property
    def vector(self) -> Float[Tensor, " m"]:
        """The generated vector as the method's tensors read it now."""
        return self._vector.value

    def begin_step(self) -> None:
        """Generate the vector for one optimizer step; see the base class."""
        self._vector.begin_step()

    def end_step(self) -> None:
        """Give the generator's parameters the gradients of all batches since the step began."""
        self._vector.end_step()

    def refresh(self) -> None:
        """Bring the vector up to date with the parameters, as every forward pass does."""
        self._vector.refresh()

    def trained_tensors(self) -> list[Tensor]:
        """The vector, from where gradients go through the generator, and what is trained whole."""
        return [self.vector, *super().trained_tensors()]

    def compile_generator(self) -> None:
        """Have ``torch.compile`` make the generator faster, and try it once.

        Raises:
            InputError: it cannot be compiled, for want of a C++ compiler for example.
        """
        try:
            self._vector.compile("reduce-overhead" if self.device.type == "cuda" else "default")
        except Exception as error:  # dynamo, inductor and the compiler have errors of their own
            raise InputError(
                f"trainer.compile=true: torch cannot compile the generator: {one_line(error)[:300]}"
            ) from error

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is the untouched language model."""
        disabled = self.peft_model.disable_adapter()
        with torch.no_grad():  # PEFT switches requires_grad, which a generated tensor refuses
            disabled.__enter__()
        try:
            yield
        finally:
            with torch.no_grad():
                disabled.__exit__(None, None, None)
            self._freeze_initial()

    def generated_tensors(self) -> dict[str, Tensor]:
        """The method's tensors by PEFT's names, as they are now; detached."""
        self._vector.settle()
        with torch.no_grad():
            return {name: getattr(module, leaf).clone() for name, module, leaf in self._slots}

    def print_trainable_parameters(self) -> None:
        """Say how much is trained, in PEFT's own words, and how much that generates."""
        trained = self.generator.n_trainable
        total = self.peft_model.get_nb_trainable_parameters()[1] + trained
        print(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f} || generated: {self.generator.chunking.m:,}"
        )

    def to_peft(self) -> PeftModel:
        """A plain PEFT model with the generated tensors; no circuit, and no link back here.

        The language model's own weights are shared, not copied.
        """
        tensors = self.generated_tensors()
        everything = (*self.peft_model.parameters(), *self.peft_model.buffers())
        shared = {id(t): t for t in everything if not t.requires_grad}
        # A parametrization lives in its module's class, which copies share: take it off meanwhile.
        for _, module, leaf in self._slots:
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
        try:
            plain = copy.deepcopy(self.peft_model, shared)
        finally:
            self._parametrize()
        for name, value in tensors.items():
            owner, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, nn.Parameter(value))
        return plain

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the generator alone: its weights (safetensors) and the configs (JSON).

        Modules that are trained whole lie beside it, in a file of their own.
        """
        whole = dict(whole_modules(self.peft_model))
        save_generator(directory, self.generator, self.peft_config, self._tensor_shapes(), whole)

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> QPAModel:
        """The model that :meth:`save_pretrained` saved, on the same language model; evaluating.

        Raises:
            InputError: the directory holds no such model, a file is damaged, or it was saved for
                another language model.
        """
        saved = files.read(directory)
        saved.check_base(model)
        seed = saved.qpa_config.seed
        loaded = cls(build_peft_model(model, saved.peft_config, seed), saved.qpa_config)
        saved.load_into(loaded.generator, dict(whole_modules(loaded.peft_model)))
        return loaded.eval()

    def _tensor_shapes(self) -> dict[str, list[int]]:
        return {
            name: list(module.parametrizations[leaf].original.shape)  # type: ignore[union-attr, index]
            for name, module, leaf in self._slots
        }


def get_qpa_model(model: PreTrainedModel, peft_config: PeftConfig, config: QPAConfig) -> QPAModel:
    """Put a PEFT method on a language model and let a circuit generate its tensors.

    Args:
        model: a causal language model or a classifier of transformers'; it is frozen and changed
            in place, as PEFT does.
        peft_config: the method: ``LoraConfig(r=4, target_modules=["lm_head"])``.
        config: the generator; ``QPAConfig()`` is the variant ``tuned``.

    Raises:
        InputError: a target that does not exist, more qubits than the back end takes, or a
            ``config`` that is out of range, names nothing, or contradicts itself.

    Example:
        >>> from peft import LoraConfig
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> base = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
        >>> model = get_qpa_model(base, LoraConfig(target_modules=["lm_head"]), QPAConfig(n_mlp=16))
        >>> model.generator.chunking.m
        464
    """
    check_generator(config)
    if not VARIANTS[config.variant].generates:
        raise InputError(f"qpa={config.variant} has no generator: use peft.get_peft_model itself.")
    qpa = QPAModel(build_peft_model(model, peft_config, config.seed), config)
    qpa.generator.chunking.warn_if_oversized()
    return qpa


# --- either kind, from a config -----------------------------------------------------------------


def adapt(
    base_model: PreTrainedModel, config: Config, task_type: str = "CAUSAL_LM"
) -> AdaptedModel:
    """The method on the language model: generated, or under ``qpa=off`` trained itself.

    Args:
        base_model: it is changed in place.
        config: of the run.
        task_type: PEFT's name for what the model does: ``CAUSAL_LM`` or ``SEQ_CLS``.

    Raises:
        InputError: a target that does not exist, or more qubits than the back end takes.
    """
    check_method(config)
    peft_config = make_peft_config(config.peft, task_type)
    adapted: AdaptedModel
    if VARIANTS[config.qpa.variant].generates:
        adapted = get_qpa_model(base_model, peft_config, config.qpa)
    else:
        adapted = ClassicalModel(build_peft_model(base_model, peft_config, config.qpa.seed))
    if config.trainer.gradient_checkpointing:
        checkpoint_activations(base_model)
    return adapted


def load_adapted(
    base_model: PreTrainedModel, directory: str | Path, config: Config
) -> AdaptedModel:
    """What a run's :meth:`~AdaptedModel.save_pretrained` wrote, on its language model; evaluating.

    Raises:
        InputError: files that are missing, damaged, or were saved for another model.
    """
    kind = QPAModel if VARIANTS[config.qpa.variant].generates else ClassicalModel
    return kind.from_pretrained(base_model, directory)
