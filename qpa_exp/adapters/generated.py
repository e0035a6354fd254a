"""A PEFT method whose tensors are generated, as a method of PEFT's own: its config and its tuner.

For each method of PEFT's, ``LORA`` for example, PEFT is given one more type, ``QPA_LORA``. So
``get_peft_model``, ``PeftModel.save_pretrained``, ``PeftModel.from_pretrained`` and
``load_adapter`` build, save and load it, and a tool that knows a ``PeftModel`` knows this one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qpa_exp.adapters.peft_model import (
    add_method,
    build_peft_model,
    checkpoint_activations,
    register,
    train_adapter_only,
    trainable_tensors,
)
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import typed
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS, check_generator

_TYPE = "QPA_"
"""Before the name of PEFT's type."""


# --- the config -----------------------------------------------------------------------------------


@dataclass
class GeneratedConfig(PeftConfig):
    """What the config of a generated method has beside the method's own fields.

    Attributes:
        qpa: the generator.
        generated: what was generated when it was saved: the tensors' shapes, and the norm of the
            generator's start. A model that is built from it must have the same.
    """

    qpa: QPAConfig = field(default_factory=QPAConfig)
    generated: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the generator as the config keys are checked.

        Raises:
            InputError: ``qpa`` is out of range, names nothing, or contradicts itself.
        """
        super().__post_init__()
        self.peft_type = PeftType(_TYPE + self.method_type().value)
        if isinstance(self.qpa, dict):  # as PEFT reads it from a file
            self.qpa = saved_config(self.qpa)
        else:
            names = [item.name for item in fields(QPAConfig)]  # it may be a class made from it
            self.qpa = QPAConfig(**{name: getattr(self.qpa, name) for name in names})
            check_generator(self.qpa, saved=self.generated is not None)
        if not VARIANTS[self.qpa.variant].generates:
            raise InputError(
                f"qpa={self.qpa.variant} has no generator: use peft.get_peft_model itself."
            )

    @classmethod
    def method_type(cls) -> PeftType:
        """PEFT's type of the method itself."""
        raise NotImplementedError

    def method(self) -> PeftConfig:
        """PEFT's config of the method itself."""
        of: Any = PEFT_TYPE_TO_CONFIG_MAPPING[self.method_type()]
        return of(**{
            item.name: copy.deepcopy(getattr(self, item.name))
            for item in fields(of) if item.init and item.name != "peft_type"
        })  # fmt: skip

    is_prompt_learning = is_adaption_prompt = False
    """The tuner below is a model around the language model, whatever it holds."""


def saved_config(record: dict[str, Any]) -> QPAConfig:
    """Return a generator's config out of a file that somebody else may have written.

    Raises:
        ValueError: a key is not known, or has another type.
        InputError: a value is out of range, or names nothing.
    """
    asked = dict(record)
    for key in ("shots", "final_shots", "blend"):  # a number in Python
        asked[key] = None if asked.get(key) is None else str(asked[key])
    config = typed(QPAConfig, asked)
    check_generator(config, saved=True)
    return config


@functools.cache
def _config_class(kind: PeftType) -> type[GeneratedConfig]:
    """Return the config of ``kind``, generated; made known to PEFT."""
    of = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    made = dataclasses.make_dataclass(
        f"QPA{of.__name__}",
        [],
        bases=(GeneratedConfig, of),
        namespace={
            "method_type": classmethod(lambda cls: kind),
            "__module__": __name__,
            "__doc__": f"PEFT's ``{of.__name__}``, whose tensors are generated: its own fields, "
            "and ``qpa``, the generator.",
        },
    )
    register(f"{_TYPE}{kind.value}".lower(), made, GeneratedMethod)
    return made


def generated_config(
    method: PeftConfig, qpa: QPAConfig, generated: dict[str, Any] | None = None
) -> GeneratedConfig:
    """Return the config of a method whose tensors are generated.

    Args:
        method: PEFT's config of the method.
        qpa: the generator.
        generated: what was generated when it was saved, where it was.

    Raises:
        InputError: ``qpa`` is out of range, names nothing, or contradicts itself.
    """
    if isinstance(method, GeneratedConfig):
        method = method.method()
    of = _config_class(PeftType(method.peft_type))
    known = {item.name for item in fields(of) if item.init} - {"peft_type", "qpa", "generated"}
    given = {k: v for k, v in vars(method).items() if k in known}
    return of(**copy.deepcopy(given), qpa=qpa, generated=generated)


# --- the vector -----------------------------------------------------------------------------------


class GeneratedVector:
    """The vector that the tensors are cut from, made anew for each forward pass that is trained.

    Without gradients it is kept, and made again only when a parameter has changed. A loop that
    knows where an optimizer step begins and ends can have it made once for each: see
    :meth:`begin_step`. A copy, by ``copy.deepcopy`` for example, has no step open.

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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the generator and the sizes: a tensor within a graph cannot be copied."""
        return {"generator": self.generator, "sizes": self.sizes}

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
        """Return what replaces ``initial``, PEFT's own tensor, in the same shape and type."""
        piece = self.vector.pieces[self.place].view(self.shape)
        if self.vector.generator.config.anchor:
            return initial + piece.to(initial.dtype)
        return piece.to(initial.dtype)


# --- the tuner ------------------------------------------------------------------------------------


class GeneratedMethod(BaseTuner):
    """What PEFT puts between a ``PeftModel`` and the language model: the method, and its generator.

    A ``PeftModel`` reaches everything here by its own name.

    Attributes:
        peft_model: PEFT's model of the method itself, on the same language model.
        generators: by the name of the adapter whose tensors they make.
    """

    peft_model: PeftModel
    generators: nn.ModuleDict

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        language_model: Any = model
        language_model.peft_config = self.peft_model.peft_config  # as the method itself leaves it
        self._entry = model if self._is_in_layers else self.peft_model
        self._hook = self._entry.register_forward_pre_hook(self._before_forward)
        self.train(self.training)  # not peft_model.training: that is off by now

    @property
    def _is_in_layers(self) -> bool:
        """Whether the tensors lie in layers of the language model, and not in PEFT's model."""
        return isinstance(self.peft_model.base_model, BaseTuner)

    # --- adapters -----------------------------------------------------------------------------

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the method's layers in place, and let a generator make their tensors.

        Raises:
            InputError: a target that does not exist, more qubits than the back end takes, or a
                ``generated`` that another language model was saved with.
        """
        config: Any = self.peft_config[adapter_name]
        method, name = config.method(), adapter_name
        method.inference_mode = False
        if "generators" not in self._modules:
            self.peft_model = build_peft_model(model, method, config.qpa.seed, adapter_name=name)
            self.generators = nn.ModuleDict()
            self._vectors: dict[str, GeneratedVector] = {}
            self._slots: dict[str, list[tuple[str, nn.Module, str]]] = {}
            frozen = config.inference_mode
        else:
            frozen = not any(p.requires_grad for p in self.generator.parameters())
            add_method(self.peft_model, name, method, config.qpa.seed)
            self._activate(name)
        named = trainable_tensors(self.peft_model)
        if not named:
            raise InputError(
                f"{method.peft_type} has no tensors to generate on this model: "
                "give other peft.target_modules."
            )
        sizes = [p.numel() for _, p in named]
        generator = Generator(sum(sizes), config.qpa).to(self.peft_model.device)
        if any(p.is_meta for p in generator.parameters()):
            raise InputError(
                "low_cpu_mem_usage=True leaves nothing for a generator to start from: "
                "give low_cpu_mem_usage=False."
            )
        self.generators[name] = generator
        self._vectors[name] = GeneratedVector(generator, sizes)
        self._slots[name] = [self._slot(path) for path, _ in named]
        for _, tensor in named:
            tensor.requires_grad_(False)
        self._parametrize(name)
        for item in fields(method):  # what PEFT has filled in
            if item.name not in ("peft_type", "inference_mode"):
                setattr(config, item.name, getattr(method, item.name))
        self._compare(config, name)
        self._activate(self.active_adapters[0], frozen)

    def _slot(self, path: str) -> tuple[str, nn.Module, str]:
        """(full name, the module that holds the tensor, its name there)."""
        owner, _, leaf = path.rpartition(".")
        return path, self.peft_model.get_submodule(owner), leaf

    def _parametrize(self, name: str) -> None:
        """Let every tensor of an adapter read its slice of the generated vector."""
        for place, (_, module, leaf) in enumerate(self._slots[name]):
            piece = Slice(self._vectors[name], place, getattr(module, leaf).shape)
            parametrize.register_parametrization(module, leaf, piece, unsafe=True)

    def _take_off(self, name: str) -> None:
        """Undo :meth:`_parametrize`: a parametrization lives in its module's class."""
        for _, module, leaf in self._slots[name]:
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)

    def _compare(self, config: GeneratedConfig, name: str) -> None:
        """Refuse a start that is not the one that was saved; note it where none was."""
        shapes, norm = self.tensor_shapes(name), self.generators[name].start_norm()  # type: ignore[operator]
        saved = config.generated
        if saved is not None and saved.get("shapes") != shapes:
            raise InputError(
                "The adapter was saved for another language model: the tensors that it generates "
                "have other names or shapes there."
            )
        begun = None if saved is None else saved.get("start_norm")
        known = isinstance(begun, int | float) and math.isclose(norm, begun, rel_tol=1e-4)
        if saved is not None and not known:
            raise InputError(
                f"The start rebuilt from seed {config.qpa.seed} has norm {norm:.6g}, not the "
                f"{begun} that was saved: this version of torch draws other numbers."
            )
        config.generated = {"shapes": shapes, "start_norm": norm}

    def tensor_shapes(self, name: str) -> dict[str, list[int]]:
        """Return the shapes of an adapter's tensors, by the names of those of ``default``."""
        own = re.compile(rf"\.{re.escape(name)}(?=\.|$)")
        return {
            own.sub(".default", path): list(module.parametrizations[leaf].original.shape)  # type: ignore[union-attr, index]
            for path, module, leaf in self._slots[name]
        }

    @contextmanager
    def _leave_initial_alone(self) -> Iterator[None]:
        """PEFT switches requires_grad of tensors: generated ones refuse, initial ones stay off."""
        with torch.no_grad():
            yield
        for slots in self._slots.values():
            for _, module, leaf in slots:
                module.parametrizations[leaf].original.requires_grad_(False)  # type: ignore[union-attr, index]

    def _activate(self, name: str, inference_mode: bool = False) -> None:
        with self._leave_initial_alone():
            self.peft_model.set_adapter(name, inference_mode=inference_mode)
        for other, generator in self.generators.items():
            generator.requires_grad_(other == name and not inference_mode)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the one that acts and is trained."""
        name = adapter_name if isinstance(adapter_name, str) else adapter_name[0]
        self.active_adapter = name
        self._activate(name, inference_mode)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train the generators of these adapters, or freeze them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.generators[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter and its generator away."""
        self._take_off(adapter_name)
        for held in (self.generators, self._vectors, self._slots, self.peft_config):
            del held[adapter_name]
        with self._leave_initial_alone():
            self.peft_model.delete_adapter(adapter_name)
        self.set_adapter(self.peft_model.active_adapters)

    def disable_adapter_layers(self) -> None:
        """Make the model the untouched language model."""
        if "_disabled" not in self.__dict__:
            self._disabled: AbstractContextManager[None] = self.peft_model.disable_adapter()
            with self._leave_initial_alone():
                self._disabled.__enter__()

    def enable_adapter_layers(self) -> None:
        """Undo :meth:`disable_adapter_layers`."""
        if "_disabled" in self.__dict__:
            with self._leave_initial_alone():
                self._disabled.__exit__(None, None, None)
            del self._disabled

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the method's own tuner puts its layers in place")

    def _cast_adapter_dtype(self, *args: Any, **kwargs: Any) -> None:
        """PEFT has done so for the method; a generator has 32 bits."""

    # --- one forward pass -----------------------------------------------------------------------

    def _before_forward(self, *_: Any) -> None:
        """Refresh before every way to call the language model: this is its forward pre-hook.

        Of the untouched language model nothing is read. What the last pass read must then stay, for
        its backward pass may compute checkpointed layers again.
        """
        if "_disabled" not in self.__dict__:
            self.refresh()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the language model's own output, with the method's tensors as they are now."""
        return self.peft_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        if not self._is_in_layers:  # PEFT reads the prompts before it calls anything
            with torch.no_grad():
                self.refresh()
        return self.peft_model.generate(*args, **kwargs)

    def train(self, mode: bool = True) -> GeneratedMethod:
        """Set the training mode of what is trained; the backbone stays in evaluation mode."""
        super().train(mode)
        train_adapter_only(self.peft_model, mode)
        return self

    def activation_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """Keep only every layer's input, and compute the rest again in the backward pass."""
        language_model: Any = self.peft_model.get_base_model()
        checkpoint_activations(language_model, *args, **options)
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Undo :meth:`activation_checkpointing_enable`."""
        language_model: Any = self.peft_model.get_base_model()
        language_model.activation_checkpointing_disable()
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Call :meth:`activation_checkpointing_enable`, of which this is the older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    gradient_checkpointing_disable = activation_checkpointing_disable

    # --- what is generated ----------------------------------------------------------------------

    @property
    def _vector(self) -> GeneratedVector:
        return self._vectors[self.active_adapters[0]]

    @property
    def generator(self) -> Generator:
        """What makes the active adapter's tensors."""
        generator: Any = self.generators[self.active_adapters[0]]
        return generator

    @property
    def vector(self) -> Float[Tensor, " m"]:
        """The generated vector as the method's tensors read it now."""
        return self._vector.value

    def begin_step(self) -> None:
        """Generate the vector for one optimizer step: see :class:`AdaptedModel`."""
        self._vector.begin_step()

    def end_step(self) -> None:
        """Give the generator's parameters the gradients of all batches since the step began."""
        self._vector.end_step()

    def refresh(self) -> None:
        """Bring the vector up to date with the parameters, as every forward pass does."""
        self._vector.refresh()

    def trained_tensors(self) -> list[Tensor]:
        """Return the vector, from where gradients go through the generator, and what is trained
        whole.
        """
        return [self.vector, *(p for p in self.peft_model.parameters() if p.requires_grad)]

    def compile_generator(self) -> None:
        """Have ``torch.compile`` make the generator faster, and try it once.

        Raises:
            InputError: it cannot be compiled, for want of a C++ compiler for example.
        """
        device = self.peft_model.device.type
        try:
            self._vector.compile("reduce-overhead" if device == "cuda" else "default")
        except Exception as error:  # dynamo, inductor and the compiler have errors of their own
            raise InputError(
                f"trainer.compile=true: torch cannot compile the generator: {one_line(error)[:300]}"
            ) from error

    def generated_tensors(self) -> dict[str, Tensor]:
        """Return the method's tensors by PEFT's names, as they are now; detached."""
        name = self.active_adapters[0]
        self._vectors[name].settle()
        with torch.no_grad():
            return {path: getattr(module, leaf).clone() for path, module, leaf in self._slots[name]}

    def num_parameters(self, only_trainable: bool = False, **options: Any) -> int:
        """Those of the language model, as transformers counts them, and the generator's."""
        language_model: Any = self.peft_model.get_base_model()
        counted = language_model.num_parameters(only_trainable, **options)
        own = (p for g in self.generators.values() for p in g.parameters())
        return int(counted) + sum(p.numel() for p in own if p.requires_grad or not only_trainable)

    def to_peft(self) -> PeftModel:
        """Return a plain PEFT model with the generated tensors; no circuit, and no link back here.

        The language model's own weights are shared, not copied. Saved, it is the adapter alone:
        PEFT by itself would add a copy of the head to an adapter on the head.
        """
        name, tensors = self.active_adapters[0], self.generated_tensors()
        everything = (*self.peft_model.parameters(), *self.peft_model.buffers())
        shared = {id(t): t for t in everything if not t.requires_grad}
        self._hook.remove()
        for adapter in self._slots:
            self._take_off(adapter)
        try:
            plain = copy.deepcopy(self.peft_model, shared)
        finally:
            for adapter in self._slots:
                self._parametrize(adapter)
            self._hook = self._entry.register_forward_pre_hook(self._before_forward)
        for other in self._slots:
            if other != name:
                plain.delete_adapter(other)
        for path, value in tensors.items():
            owner, _, leaf = path.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, nn.Parameter(value))
        save = functools.partial(plain.save_pretrained, save_embedding_layers=False)
        plain.save_pretrained = save  # type: ignore[method-assign]
        return plain

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Return a plain language model with the adapter in its weights; this one stays as it is.

        The weights of the adapted layers are copied first. So an adapted head that is tied to the
        embedding is no longer tied to it, and the embedding stays as it was.

        Raises:
            InputError: the method cannot be merged into a weight.
        """
        return merged(self.to_peft(), *args, **kwargs)

    def unload(self) -> Any:
        """Return the language model itself, without the adapter.

        This model must not be used after.
        """
        self._hook.remove()
        for adapter in self._slots:
            self._take_off(adapter)
        return self.peft_model.unload()

    # --- PEFT's files -----------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Return the generator's parameters, which are all that an adapter consists of.

        PEFT would add a copy of a head that is adapted, which it reads from ``state_dict``.
        """
        for key in [key for key in state_dict if ".base_layer." in key]:
            del state_dict[key]
        start = _place(adapter_name)
        return {key: value for key, value in state_dict.items() if key.startswith(start)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        if key.startswith(start := _place(adapter_name)):
            return key.removeprefix(start)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse weights that are not all of the generator's."""
        start = _place(adapter_name)
        own = {
            key.removeprefix(start): p
            for key, p in model.named_parameters()
            if key.startswith(start)
        }
        found = {key: value.shape for key, value in state_dict.items() if key in own}
        if found != {key: p.shape for key, p in own.items()}:
            raise InputError("The adapter's weights do not fit its own config.")
        return {start + key if key in own else key: v for key, v in state_dict.items()}


def _place(adapter_name: str) -> str:
    """Where a ``PeftModel`` has an adapter's generator."""
    return f"base_model.generators.{adapter_name}."


def method_name(model: PeftModel) -> str:
    """PEFT's name of the method, in lower case."""
    return str(getattr(kind := model.active_peft_config.peft_type, "value", kind)).lower()


def merged(plain: PeftModel, *args: Any, **kwargs: Any) -> Any:
    """Return a plain language model with the adapter in its weights.

    ``plain`` must not be used after.

    The weights of the adapted layers are copied first, so no other model that has them changes.

    Raises:
        InputError: the method cannot be merged into a weight.
    """
    for name, module in plain.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer = module.get_base_layer()
        weight = getattr(layer, "weight", None)
        if weight is not None and not weight.is_floating_point():
            # Merged into 8 or 4 bits, an update would be rounded to the steps of its weight.
            raise InputError(
                f"{name} is quantized, and merging would round the adapter away: give format=peft."
            )
        for leaf, parameter in list(layer.named_parameters(recurse=False)):
            own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            setattr(layer, leaf, own)
    language_model: Any = plain.get_base_model()
    head = language_model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        language_model.config.tie_word_embeddings = False
    try:
        return plain.merge_and_unload(*args, **kwargs)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"{method_name(plain)} cannot be merged into the weights: give format=peft."
        ) from error


for _kind in list(PEFT_TYPE_TO_CONFIG_MAPPING):
    _config_class(_kind)

QPALoraConfig: Any = _config_class(PeftType.LORA)
"""PEFT's ``LoraConfig`` with one more field, ``qpa``: the generator of LoRA's tensors.

PEFT and TRL build, save and load the adapter by it, as any other.

Raises:
    InputError: ``qpa`` is out of range, names nothing, or contradicts itself.

Examples:
    >>> from peft import PeftModel, get_peft_model
    >>> from qpa_exp import QPAConfig, QPALoraConfig
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)
    >>> config = QPALoraConfig(r=2, target_modules=["c_attn"], qpa=QPAConfig(n_mlp=16))
    >>> model = get_peft_model(GPT2LMHeadModel(shape), config)
    >>> model.save_pretrained("adapter")
    >>> again = PeftModel.from_pretrained(GPT2LMHeadModel(shape), "adapter")
"""
