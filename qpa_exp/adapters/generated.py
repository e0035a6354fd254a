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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    check_unadapted,
    checkpoint_activations,
    compute_again_the_same,
    put_back_where_it_fails,
    register,
    take_off,
    train_adapter_only,
    trainable_tensors,
)
from qpa_exp.config import QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import typed
from qpa_exp.generator.generator import GeneratedVector, Generator, Slice
from qpa_exp.generator.rules import VARIANTS, check_generator

_TYPE = "QPA_"
"""Before the name of PEFT's type."""


# --- the config -----------------------------------------------------------------------------------

_NOT_GENERATED = {
    "ensure_weight_tying": "ties tensors of two layers, and each generated one is a layer's own",
    "trainable_token_indices": "trains rows of the embedding, which no saved generator holds",
    "monteclora_config": "trains what draws the tensors, and generated ones are not drawn",
}
"""Options of PEFT's methods, and why none whose tensors are generated can have them."""


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
            InputError: ``qpa`` is out of range, names nothing, or contradicts itself, or the
                method has an option that no generator can have.
        """
        super().__post_init__()
        self.peft_type = PeftType(_TYPE + self.method_type().value)
        if isinstance(self.qpa, dict):  # as PEFT reads it from a file
            self.qpa = saved_config(self.qpa)
        else:
            names = [item.name for item in fields(QPAConfig)]  # it may be a class made from it
            self.qpa = QPAConfig(**{name: getattr(self.qpa, name) for name in names})
            check_generator(self.qpa, saved=self.generated is not None, slopes=False)
        if not VARIANTS[self.qpa.variant].generates:
            raise InputError(
                f"qpa={self.qpa.variant} has no generator: use peft.get_peft_model itself."
            )
        for option, why in _NOT_GENERATED.items():
            if value := getattr(self, option, None):
                raise InputError(f"{option}={value} {why}: leave it out.")

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
    check_generator(config, saved=True, slopes=False)
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
    disabled = False

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(peft_config, PeftConfig):  # a PeftModel gives the configs of its adapters
            raise InputError(
                "A generated adapter needs a model around the language model, and cannot be put "
                "into it: load it with QPAModel.from_pretrained or PeftModel.from_pretrained, or "
                "build it with get_qpa_model or peft.get_peft_model."
            )
        check_unadapted(model)  # before PEFT writes this config beside that of the other adapter
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        language_model: Any = model
        language_model.peft_config = self.peft_model.peft_config  # as the method itself leaves it
        compute_again_the_same(language_model)
        self.train(self.training)  # not peft_model.training: that is off by now

    @property
    def _is_in_layers(self) -> bool:
        """Whether the tensors lie in layers of the language model, and not in PEFT's model."""
        return isinstance(self.peft_model.base_model, BaseTuner)

    @property
    def _tuner(self) -> Any:
        """PEFT's tuner of the method itself; the language model for one that has none."""
        return self.peft_model.base_model

    @property
    def _entry(self) -> nn.Module:
        """What every way to call the language model goes through."""
        return self.model if self._is_in_layers else self.peft_model

    # --- adapters -----------------------------------------------------------------------------

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the method's layers in place, and let a generator make their tensors.

        Raises:
            InputError: a target that does not exist, more qubits than the back end takes, or a
                ``generated`` that another language model was saved with.
        """
        config: Any = copy.deepcopy(self.peft_config[adapter_name])  # the caller's stays as it is
        self.peft_config[adapter_name] = config
        method, name = config.method(), adapter_name
        method.inference_mode = False
        first = "generators" not in self._modules
        with put_back_where_it_fails(model) if first else self._plainly():
            if first:
                self.peft_model = build_peft_model(
                    model, method, config.qpa.seed, adapter_name=name,
                    saved=config.generated is not None,
                )  # fmt: skip
                self.generators = nn.ModuleDict()
                self._vectors: dict[str, GeneratedVector] = {}
                self._slots: dict[str, list[tuple[str, nn.Module, str]]] = {}
                frozen = config.inference_mode
            else:
                frozen = not any(p.requires_grad for p in self.generator.parameters())
                add_method(self.peft_model, name, method, config.qpa.seed)
                self.peft_model.set_adapter(name)
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
            for item in fields(method):  # what PEFT has filled in
                if item.name not in ("peft_type", "inference_mode"):
                    setattr(config, item.name, getattr(method, item.name))
            self._compare(config, name)
        if first:
            self._attach()
        self._activate(self.active_adapters[0], frozen)

    def _slot(self, path: str) -> tuple[str, nn.Module, str]:
        """(full name, the module that holds the tensor, its name there)."""
        owner, _, leaf = path.rpartition(".")
        return path, self.peft_model.get_submodule(owner), leaf

    def _attach(self) -> None:
        """Let every tensor read its slice of a generated vector, which each pass refreshes."""
        for name, slots in self._slots.items():
            for place, (_, module, leaf) in enumerate(slots):
                piece = Slice(self._vectors[name], place, getattr(module, leaf).shape)
                parametrize.register_parametrization(module, leaf, piece, unsafe=True)
        self._hook = self._entry.register_forward_pre_hook(self._before_forward)

    def _take_off(self) -> None:
        """Undo :meth:`_attach`.

        A parametrized module has a class of its own, which a deep copy of it shares: that class is
        left, and nothing is taken out of it, as torch's ``remove_parametrizations`` does.
        """
        self._hook.remove()
        for module in {module for slots in self._slots.values() for _, module, _ in slots}:
            lists: Any = module.parametrizations
            initial = {leaf: held.original for leaf, held in lists.items()}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for leaf, tensor in initial.items():
                setattr(module, leaf, tensor)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Within this context the method is PEFT's own, and nothing in it leads back here."""
        self._take_off()
        try:
            yield
        finally:
            self._attach()

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
        shapes = {}
        for path, module, leaf in self._slots[name]:
            lists: Any = getattr(module, "parametrizations", {})  # none before they are attached
            tensor = lists[leaf].original if leaf in lists else getattr(module, leaf)
            shapes[own.sub(".default", path)] = list(tensor.shape)
        return shapes

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

    def check_adapters(self, names: Sequence[str]) -> None:
        """Refuse a name that no adapter has.

        Raises:
            InputError: says which.
        """
        for name in names:
            if name not in self._slots:
                raise InputError(
                    f"{name} is no adapter of this model: give one of {', '.join(self._slots)}."
                )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the one that acts and is trained.

        A step that is open ends: see :meth:`end_step`.

        Raises:
            InputError: there is no such adapter, or more than one is given.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1:
            raise InputError(f"One generated adapter acts at a time: give one of {names}.")
        self.check_adapters(names)
        self.end_step()
        (self.active_adapter,) = names
        self._activate(names[0], inference_mode)
        self._hold_merged()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Train the generators of these adapters, or freeze them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.generators[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter and its generator away.

        Raises:
            InputError: there is no such adapter, or no other.
        """
        self.check_adapters([adapter_name])
        if len(self._slots) == 1:
            raise InputError(
                f"{adapter_name} is the only adapter: call unload() for the language model itself."
            )
        self.end_step()
        with self._plainly():
            for held in (self.generators, self._vectors, self._slots, self.peft_config):
                del held[adapter_name]
            self.peft_model.delete_adapter(adapter_name)
        self.set_adapter(self.peft_model.active_adapters)

    def disable_adapter_layers(self) -> None:
        """Make the model the untouched language model."""
        self._switch(off=True)

    def enable_adapter_layers(self) -> None:
        """Undo :meth:`disable_adapter_layers`."""
        self._switch(off=False)

    def _switch(self, *, off: bool) -> None:
        if off == self.disabled:
            return
        self.disabled, tuner = off, self._tuner
        if not self.peft_model.active_peft_config.is_prompt_learning:  # else there are no layers
            with self._leave_initial_alone():
                (tuner.disable_adapter_layers if off else tuner.enable_adapter_layers)()

    # --- merged into the weights, for a while ---------------------------------------------------

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Add the update to the language model's own weights, until :meth:`unmerge_adapter`.

        What is merged is what evaluation reads. The vector stays as it is until then, whatever is
        trained meanwhile, so that just what was added is subtracted.

        Args:
            adapter_names: what to merge; None for the active one.
            safe_merge: refuse an update that is not finite.

        Raises:
            InputError: there is no such adapter, or it cannot be merged into a weight.
        """
        self.check_adapters(adapter_names or [])
        for vector in self._vectors.values():
            vector.settle()
        with _merging(self.peft_model):
            self._tuner.merge_adapter(adapter_names, safe_merge)
        self._hold_merged()

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what PEFT does with tensors of its own.

        Raises:
            InputError: says what to do in its place.
        """
        raise InputError(
            "add_weighted_adapter adds tensors, and those of a generated adapter are made by its "
            "generator: save the to_peft() of each, load them into one PeftModel, and call it "
            "there."
        )

    def unmerge_adapter(self) -> None:
        """Undo :meth:`merge_adapter`."""
        with _merging(self.peft_model):
            self._tuner.unmerge_adapter()
        self._hold_merged()

    def _hold_merged(self) -> None:
        """Keep the vectors that a weight has in it, and only these."""
        layers = (m for m in self.peft_model.modules() if isinstance(m, BaseTunerLayer))
        merged = {name for layer in layers for name in layer.merged_adapters}
        for name, vector in self._vectors.items():
            vector.held = name in merged

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the method's own tuner puts its layers in place")

    def _cast_adapter_dtype(self, *args: Any, **kwargs: Any) -> None:
        """PEFT has done so for the method; a generator has 32 bits."""

    # --- one forward pass -----------------------------------------------------------------------

    def _before_forward(self, *_: Any) -> None:
        """Refresh before every way to call the language model: this is its forward pre-hook.

        Of the untouched language model nothing is read.
        """
        if self.disabled:
            return
        if any(vector.held for vector in self._vectors.values()):
            self._hold_merged()  # PEFT unmerges by itself, too
        self.refresh()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Let a call name adapters, as PEFT asks its tuners to."""
        with self.peft_model._enable_peft_forward_hooks(*args, **kwargs):
            yield

    @property
    def _called(self) -> Any:
        """What computes; prompts are put before the text by PEFT's model of them."""
        return self.model if self.disabled and not self._is_in_layers else self.peft_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the language model's own output, with the method's tensors as they are now."""
        return self._called(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        if not (self._is_in_layers or self.disabled):  # PEFT reads the prompts before any call
            with torch.no_grad():
                self.refresh()
        return self._called.generate(*args, **kwargs)

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
        for vector in self._vectors.values():
            vector.end_step()

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

    def generated_tensors(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Return a method's tensors by PEFT's names, as they are now; detached.

        Args:
            adapter_name: whose tensors; None for the active one.
        """
        name = adapter_name or self.active_adapters[0]
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

        Raises:
            InputError: the adapter is merged into the weights at the moment.
        """
        return self._plain(self.active_adapters[:1])

    def _plain(self, names: Sequence[str]) -> PeftModel:
        """Return a plain PEFT model of these adapters alone; the first is active."""
        self.check_adapters(names)
        if any(vector.held for vector in self._vectors.values()):
            raise InputError("The adapter is merged into the weights: call unmerge_adapter first.")
        tensors = {path: t for name in names for path, t in self.generated_tensors(name).items()}
        everything = (*self.peft_model.parameters(), *self.peft_model.buffers())
        with self._plainly():
            own = {id(getattr(module, leaf)) for s in self._slots.values() for _, module, leaf in s}
            shared = {id(t): t for t in everything if not t.requires_grad and id(t) not in own}
            plain = copy.deepcopy(self.peft_model, shared)
        for other in self._slots:
            if other not in names:
                plain.delete_adapter(other)
        if self.disabled and self._is_in_layers:
            tuner: Any = plain.base_model
            tuner.enable_adapter_layers()
        plain.set_adapter(names[0])
        for path, value in tensors.items():
            owner, _, leaf = path.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, nn.Parameter(value))
        save = functools.partial(plain.save_pretrained, save_embedding_layers=False)
        plain.save_pretrained = save  # type: ignore[method-assign]
        return plain

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """Return a plain language model with the adapter in its weights; this one stays as it is.

        The weights of the adapted layers are copied first. So an adapted head that is tied to the
        embedding is no longer tied to it, and the embedding stays as it was.

        Args:
            progressbar: show one.
            safe_merge: refuse an update that is not finite.
            adapter_names: what to merge, one after the other; None for the active one.

        Raises:
            InputError: there is no such adapter, or it cannot be merged into a weight.
        """
        names = adapter_names or self.active_adapters
        return merged(self._plain(names), progressbar, safe_merge, names)

    def unload(self) -> Any:
        """Return the language model itself, without the adapter.

        This model must not be used after.
        """
        self._take_off()
        return take_off(self.peft_model)

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
    with _merging(plain):
        return plain.merge_and_unload(*args, **kwargs)


@contextmanager
def _merging(model: PeftModel) -> Iterator[None]:
    """Say in one sentence why a method is not merged, or not unmerged.

    Raises:
        InputError: PEFT has no merge for the method, or refuses this one.
    """
    why = "PEFT has no merge for it"
    try:
        if not isinstance(model.base_model, BaseTuner):
            raise NotImplementedError
        yield
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        if not isinstance(error, AttributeError):
            why = one_line(error).rstrip(".") or why
        raise InputError(
            f"{method_name(model)} cannot be merged into the weights: {why}; format=peft writes "
            "the adapter beside them."
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
