"""A language model whose PEFT tensors are generated instead of trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from qpa_exp.adapters import saved_generator as files
from qpa_exp.adapters.building import build_peft_model, train_adapter_only, trainable_tensors
from qpa_exp.adapters.checkpointing import checkpoint_activations
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.generator import Generator


class GeneratedVector:
    """The vector that the tensors are cut from, made anew for each forward pass in training.

    While nothing is trained it is kept, and made again only when a parameter has changed. A loop
    that knows where an optimizer step begins and ends can have it made once for each: see
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
        self._made_for: object = None
        self._generated: Float[Tensor, " m"] | None = None
        self._leaf: Float[Tensor, " m"]
        self.settle()

    def begin_step(self) -> None:
        """Make the vector, unless that has been done since the last :meth:`end_step`.

        Until then every backward pass ends at it, and its gradients add up.
        """
        if self._generated is None:
            self._generated = self.make()
            self._leaf = self._generated.detach().clone().requires_grad_()
        self._set(self._leaf)

    def end_step(self) -> None:
        """Take what has added up through the generator, to the gradients of its parameters."""
        if self._generated is None:
            return
        generated, self._generated = self._generated, None
        if self._leaf.grad is not None:
            generated.backward(self._leaf.grad)
        self._set(self._leaf.detach())

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
            self.make, self._generated = self.generator, None
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
        if torch.is_grad_enabled() and self.generator.training:
            if self._generated is None:
                self._set(self.make())
            return
        now = self._state()
        if self._made_for != now:
            self._set(self.make(), now)

    def _set(self, value: Float[Tensor, " m"], made_for: object = None) -> None:
        """Cut at once, so that the gradients of all pieces are put together at once, too."""
        with torch.set_grad_enabled(value.requires_grad):
            self.value, self.pieces = value, value.split(self.sizes)
        self._made_for = made_for

    def _state(self) -> object:
        parameters = list(self.generator.parameters())
        versions = tuple((p._version, p.data_ptr()) for p in parameters)
        return self.generator.training, torch.is_grad_enabled(), versions


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


class QPAModel(nn.Module):
    """A frozen language model, a PEFT method on it, and the generator of the method's tensors.

    It is called as the language model is: ``model(input_ids=..., labels=...).loss.backward()``
    leaves gradients in the generator's parameters, the only trainable ones. Build it with
    :func:`get_qpa_model`.

    Attributes:
        peft_model: HF PEFT's model, whose trainable tensors read from the generated vector.
        generator: the circuit and the mapping model.
    """

    def __init__(self, peft_model: PeftModel, config: QPAConfig) -> None:
        super().__init__()
        self.peft_model = peft_model
        named = trainable_tensors(peft_model)
        sizes = [p.numel() for _, p in named]
        self.generator = Generator(sum(sizes), config)
        self.generator.to(peft_model.device)
        self._vector = GeneratedVector(self.generator, sizes)
        self._slots = [self._slot(name) for name, _ in named]
        for _, tensor in named:
            tensor.requires_grad_(False)
        self._parametrize()
        self.train(peft_model.training)

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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model's own output, with the tensors generated for this call.

        Takes what the language model takes; these three are named because a Trainer reads off
        here which columns of its data to pass on.
        """
        self._vector.refresh()
        return self.peft_model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )

    @property
    def vector(self) -> Float[Tensor, " m"]:
        """The generated vector as the method's tensors read it now."""
        return self._vector.value

    def begin_step(self) -> None:
        """Generate the vector for one optimizer step.

        For training loops that call :meth:`end_step` before each step of the optimizer: however
        many batches a step gathers, the generator then runs once, forward and backward. Other
        loops need neither; the vector is then made anew in each forward pass.
        """
        self._vector.begin_step()

    def end_step(self) -> None:
        """Give the generator's parameters the gradients of all batches since the step began."""
        self._vector.end_step()

    def refresh(self) -> None:
        """Bring the vector up to date with the parameters, as every forward pass does."""
        self._vector.refresh()

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

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        self._vector.refresh()
        return self.peft_model.generate(*args, **kwargs)

    def train(self, mode: bool = True) -> QPAModel:
        """Set the training mode of the generator and the method; the backbone stays frozen."""
        super().train(mode)
        train_adapter_only(self.peft_model, mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Keep only every layer's input, and compute the rest again in the backward pass.

        The same name and arguments as transformers' own, so that its Trainer finds it.
        """
        checkpoint_activations(
            self.get_base_model(),
            activation_checkpointing_kwargs=activation_checkpointing_kwargs,
            **options,
        )
        self.train(self.training)

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

    @property
    def config(self) -> Any:
        """The language model's config."""
        return self.peft_model.config

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""
        return self.peft_model.device

    def get_base_model(self) -> Any:
        """The language model, with the method's layers in it; PEFT's own name for it."""
        return self.peft_model.get_base_model()

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
        shared = {id(t): t for t in (*self.peft_model.parameters(), *self.peft_model.buffers())}
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
        """Write the generator alone: its weights (safetensors) and the configs (JSON)."""
        files.save(directory, self.generator, self._peft_config(), self._tensor_shapes())

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> QPAModel:
        """The model that :meth:`save_pretrained` saved, on the same language model; evaluating.

        Raises:
            InputError: the directory holds no such model, a file is damaged, or it was saved for
                another language model.
        """
        saved = files.read(directory)
        saved.check_base(model)
        loaded = get_qpa_model(model, saved.peft_config, saved.qpa_config)
        saved.load_into(loaded.generator)
        return loaded.eval()

    def _peft_config(self) -> PeftConfig:
        return self.peft_model.peft_config[self.peft_model.active_adapter]

    def _tensor_shapes(self) -> dict[str, list[int]]:
        return {
            name: list(module.parametrizations[leaf].original.shape)  # type: ignore[union-attr, index]
            for name, module, leaf in self._slots
        }


def get_qpa_model(model: PreTrainedModel, peft_config: PeftConfig, config: QPAConfig) -> QPAModel:
    """Put a PEFT method on a language model and let a circuit generate its tensors.

    Args:
        model: any causal language model; it is frozen and changed in place, as PEFT does.
        peft_config: the method: ``LoraConfig(r=4, target_modules=["lm_head"])``.
        config: the generator; ``QPAConfig(n_mlp=2048)`` is the variant ``tuned``.

    Raises:
        InputError: a target that does not exist, or more qubits than the back end takes.
    """
    if config.variant == "off":
        raise InputError("qpa=off has no generator: use peft.get_peft_model itself.")
    qpa = QPAModel(build_peft_model(model, peft_config, config.seed), config)
    qpa.generator.chunking.warn_if_oversized()
    return qpa
