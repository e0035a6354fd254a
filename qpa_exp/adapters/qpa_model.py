"""A language model with a PEFT method on it, whether its tensors are trained or generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.peft_model import TunerModelStatus
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpa_exp.adapters import saved_generator
from qpa_exp.adapters.catalogue import check_method
from qpa_exp.adapters.generated import GeneratedMethod, generated_config
from qpa_exp.adapters.peft_model import (
    build_peft_model,
    checkpoint_activations,
    make_peft_config,
    peft_dict,
    plain,
    train_adapter_only,
    whole_modules,
    without_remarks,
)
from qpa_exp.adapters.saved_method import CONFIG, WEIGHTS, read_adapter, same_shapes, save_adapter
from qpa_exp.config import Config, QPAConfig
from qpa_exp.errors import InputError, one_line
from qpa_exp.files import check_directory, whole_file, write_json
from qpa_exp.generator.generator import Generator
from qpa_exp.generator.rules import VARIANTS


class AdaptedModel(nn.Module):
    """A frozen language model and a PEFT method on it: what a run asks of either kind.

    It is called as the language model is: ``model(input_ids=..., labels=...).loss.backward()``
    leaves gradients in what is trained. :class:`ClassicalModel` trains the method's own tensors;
    in :class:`QPAModel` a generator makes them.

    Attributes:
        peft_model: HF PEFT's model of the method.
        generator: what makes the method's tensors; None where they are trained themselves.
    """

    peft_model: PeftModel
    generator: Generator | None

    if TYPE_CHECKING:  # in a QPAModel these are the base model's, as PeftModel finds them there

        def begin_step(self) -> None:
            """Generate the vector for one optimizer step.

            For training loops that call :meth:`end_step` before each step of the optimizer: however
            many batches a step gathers, the generator runs once, forward and backward. Other loops
            need neither.
            """

        def end_step(self) -> None:
            """Give the trained parameters the gradients of all batches since the step began."""

        def refresh(self) -> None:
            """Bring what is generated up to date with the parameters, as forward passes do."""

        def trained_tensors(self) -> list[Tensor]:
            """Return where the gradients of the language model's loss end.

            For a loss that is computed piece by piece and adds gradients up itself.
            """

        def compile_generator(self) -> None:
            """Make the generator faster, where there is one."""

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """Write text: the language model's own ``generate``."""

        def to_peft(self) -> PeftModel:
            """Return a plain PEFT model of the same tensors."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer trains, by the names that checkpoints have."""
        named = self.peft_model.named_parameters()
        return {f"peft_model.{name}": p for name, p in named if p.requires_grad}

    @property
    def circuit_evaluations(self) -> Tensor | None:
        """How often a circuit has been evaluated in this process; None where there is none."""
        if self.generator is None or not VARIANTS[self.generator.config.variant].circuit:
            return None
        evaluations: Any = self.generator.circuit.evaluations
        return torch.as_tensor(evaluations)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within this context the model is the untouched language model."""
        raise NotImplementedError

    def language_model(self) -> Any:
        """Return the language model as transformers has it, with the method's layers in it."""
        return self.peft_model.get_base_model()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what was trained, and nothing of the language model."""
        raise NotImplementedError


class ClassicalModel(AdaptedModel):
    """A PEFT method whose own tensors are trained (``qpa=off``)."""

    generator = None

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        self.peft_model = peft_model
        self.train(peft_model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the language model's own output."""
        return self.peft_model(*args, **kwargs)

    def begin_step(self) -> None:
        """Do nothing: no tensor is generated."""

    end_step = refresh = compile_generator = begin_step

    def trained_tensors(self) -> list[Tensor]:
        """Return the method's own parameters."""
        return [p for p in self.peft_model.parameters() if p.requires_grad]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write text: the language model's own ``generate``."""
        return self.peft_model.generate(*args, **kwargs)

    def train(self, mode: bool = True) -> ClassicalModel:
        """Set the training mode of what is trained; the backbone stays in evaluation mode."""
        super().train(mode)
        train_adapter_only(self.peft_model, mode)
        return self

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Within this context the model is the untouched language model."""
        context: AbstractContextManager[None] = self.peft_model.disable_adapter()
        return context

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(self.peft_model, save_directory)

    def to_peft(self) -> PeftModel:
        """PEFT's model itself."""
        return self.peft_model

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, directory: str | Path) -> ClassicalModel:
        """Return the model that :meth:`save_pretrained` saved, on the same language model.

        It is in evaluation mode.

        Raises:
            InputError: the directory is missing, or holds no adapter for this model.
        """
        source = Path(directory)
        config, weights = read_adapter(source)
        try:
            loaded = PeftModel.from_pretrained(model, str(source), config=config)
        except Exception as error:  # PEFT, safetensors and torch each have errors for damage
            raise InputError(f"{directory} cannot be loaded: {one_line(error)[:300]}") from error
        has = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        if not same_shapes(weights, has):
            file = source / SAFETENSORS_WEIGHTS_NAME
            raise InputError(f"{file} does not hold the tensors of its own {CONFIG_NAME}.")
        return cls(loaded).eval()


class QPAModel(PeftModel, AdaptedModel):
    """A frozen language model, a PEFT method on it, and the generator of the method's tensors.

    It is a :class:`peft.PeftModel`, so whatever takes one takes this. Its only trainable parameters
    are the generator's, and those of modules that PEFT trains whole beside a method, as a
    classifier's new head. Build it with :func:`get_qpa_model`.

    Attributes:
        base_model: the method and its generators, between this and the language model.
        generator: what makes the tensors of the active adapter.
        peft_model: PEFT's model of the method itself.

    Examples:
        Train it as any module. The gradients end in the generator:

        >>> import torch
        >>> from peft import LoraConfig
        >>> from qpa_exp import QPAConfig, QPAModel, get_qpa_model
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> size = {"vocab_size": 50, "n_embd": 8, "n_layer": 1, "n_head": 1}
        >>> shape = GPT2Config(**size, bos_token_id=0, eos_token_id=0)
        >>> base = GPT2LMHeadModel(shape).eval()
        >>> lora = LoraConfig(r=2, target_modules=["lm_head"])
        >>> model = get_qpa_model(base, lora, QPAConfig(n_mlp=16, window=2))
        >>> model.print_trainable_parameters()
        trainable params: 120 || all params: 9,716 || trainable%: 1.2351 || generated: 116
        >>> model.get_model_status().requires_grad
        {'default': True}
        >>> ids = torch.arange(8)[None]  # (batch, tokens)
        >>> optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=0.1)
        >>> model(input_ids=ids, labels=ids).loss.backward()
        >>> optimizer.step()

        The language model itself is still there, and writes text:

        >>> with model.disable_adapter():
        ...     unchanged = model(input_ids=ids).logits
        >>> bool((model(input_ids=ids).logits != unchanged).any())
        True
        >>> model.generate(input_ids=ids, max_new_tokens=2, pad_token_id=0).shape[0]
        1

        Save the generator, load it again, and export a plain adapter, which needs no circuit:

        >>> model.save_pretrained("generator")
        >>> again = QPAModel.from_pretrained(GPT2LMHeadModel(shape), "generator")
        >>> model.to_peft().save_pretrained("adapter")

        A loop that gathers several batches for a step generates the vector once:

        >>> model.begin_step()
        >>> for batch in (ids, ids + 8):
        ...     model(input_ids=batch, labels=batch).loss.backward()
        >>> model.end_step()

        A loss of your own may read the generated vector, and the language model as it is adapted:

        >>> model.refresh()
        >>> [tuple(tensor.shape) for tensor in model.trained_tensors()]
        [(116,)]
        >>> type(model.language_model()).__name__
        'GPT2LMHeadModel'

        What is generated, as one vector and tensor by tensor:

        >>> tuple(model.vector.shape)  # (m,)
        (116,)
        >>> sorted(tuple(tensor.shape) for tensor in model.generated_tensors().values())
        [(2, 8), (50, 2)]

        A plain language model has the adapter in its weights, and this one stays as it is:

        >>> type(model.merge_and_unload()).__name__
        'GPT2LMHeadModel'

        With a C++ compiler or a GPU the generator can be compiled, in about a minute:

        >>> model.compile_generator()  # doctest: +SKIP
    """

    base_model: GeneratedMethod
    generator: Generator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with without_remarks():
            super().__init__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the language model's own output, with the method's tensors as they are now."""
        return self.base_model(*args, **kwargs)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what an optimizer trains, by the names that checkpoints have."""
        own = {f"generator.{name}": p for name, p in self.generator.named_parameters()}
        return super().trained_parameters() | own

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this context the model is the untouched language model."""
        within = self.base_model.disabled  # another such context, which goes on after this one
        self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            if not within:
                self.base_model.enable_adapter_layers()

    def get_model_status(self) -> TunerModelStatus:
        """Return PEFT's status; an adapter is trained where its generator is."""
        trained: dict[str, Any] = {
            name: any(p.requires_grad for p in generator.parameters())
            for name, generator in self.base_model.generators.items()
        }
        return dataclasses.replace(super().get_model_status(), requires_grad=trained)

    def print_trainable_parameters(self) -> None:
        """Say how much is trained, in PEFT's own words, and how much that generates."""
        trained, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f} || generated: {self.generator.chunking.m:,}"
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        selected_adapters: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the generator alone: its weights (safetensors) and the configs (JSON).

        Modules that are trained whole lie beside its weights. PEFT's own ``from_pretrained`` reads
        the files, too.

        Args:
            save_directory: where to; made where there is none. An adapter that is not named
                ``default`` goes to a directory of its name there.
            args: what PEFT takes here and has no meaning for a generator, as ``kwargs``.
            is_main_process: False writes nothing, for the other processes of a distributed run.
            state_dict: of a whole model such as this, to save in place of its own weights.
            selected_adapters: their names; None for all.
            kwargs: see ``args``.

        Raises:
            InputError: there is no such adapter, or ``save_directory`` is a file.
        """
        if not is_main_process:
            return
        check_directory(save_directory)
        names = selected_adapters or list(self.peft_config)
        self.base_model.check_adapters(names)
        for name in names:
            place = Path(save_directory) / ("" if name == "default" else name)
            weights = get_peft_model_state_dict(self, state_dict, name, save_embedding_layers=False)
            generator: Any = self.base_model.generators[name]
            shapes = self.base_model.tensor_shapes(name)
            method = self.peft_model.peft_config[name]
            save_generator(place, generator, method, shapes, weights)
            write_json(place / CONFIG_NAME, peft_dict(self.peft_config[name]))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> QPAModel:
        """Return the model that :meth:`save_pretrained` saved, on the same language model.

        It is in evaluation mode.

        Args:
            model: the language model, which is changed in place.
            model_id: the directory, or the id of a repository of the hub: ``owner/name``.
            subfolder: of either, where the generator lies in one.
            revision: of the repository: a commit, tag or branch; None for the newest.
            token: for a private repository; None for the one that ``hf auth login`` left.
            cache_dir: where the hub's files are kept; None for Hugging Face's own place.
            local_files_only: whether to use what is there, and no network.

        Raises:
            InputError: there is no such model, a file is damaged, or it was saved for another
                language model.
        """
        place = saved_generator.local_copy(
            model_id, subfolder, revision=revision, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only,
        )  # fmt: skip
        saved = saved_generator.read(place)
        saved.check_base(model)
        start = {"shapes": saved.shapes, "start_norm": saved.start_norm}
        loaded = cls(model, generated_config(saved.peft_config, saved.qpa_config, start))
        saved.load_into(loaded.generator, dict(whole_modules(loaded.peft_model)))
        return loaded.eval()


def get_qpa_model(model: PreTrainedModel, peft_config: PeftConfig, config: QPAConfig) -> QPAModel:
    """Put a PEFT method on a language model and let a circuit generate its tensors.

    Args:
        model: a causal language model or a classifier of transformers'; it is frozen and changed
            in place, as PEFT does.
        peft_config: the method: ``LoraConfig(r=4, target_modules=["lm_head"])``.
        config: the generator; ``QPAConfig()`` is the variant ``tuned``.

    Returns:
        The model, in training mode, at first with the outputs of ``model`` under ``tuned``. Only
        ``generator`` is trained: a rate of about 0.01 suits LoRA, 0.005 other methods.

    Raises:
        InputError: a target that does not exist, more qubits than the back end takes, a
            ``peft_config`` that could not be loaded again, or a ``config`` that is out of range,
            names nothing, or contradicts itself.

    Examples:
        >>> from peft import LoraConfig
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1)
        >>> lora = LoraConfig(target_modules=["lm_head"])
        >>> model = get_qpa_model(GPT2LMHeadModel(shape), lora, QPAConfig(n_mlp=16))
        >>> model.generator.chunking.m
        464
    """
    for name, given, kind in (
        ("model", model, PreTrainedModel),
        ("peft_config", peft_config, PeftConfig),
        ("config", config, QPAConfig),
    ):
        if not isinstance(given, kind):
            raise InputError(
                f"get_qpa_model: {name} is {given!r:.100}: give an object of {kind.__name__}."
            )
    made = generated_config(peft_config, config)
    made.base_model_name_or_path = model.name_or_path or None
    qpa = QPAModel(model, made)
    qpa.generator.chunking.warn_if_oversized()
    return qpa


# --- its files ---------------------------------------------------------------------------------


def save_generator(
    directory: str | Path,
    generator: Generator,
    peft_config: PeftConfig,
    shapes: dict[str, list[int]],
    weights: Mapping[str, Tensor],
) -> None:
    """Write a generator; the directory is made where there is none.

    Args:
        directory: where the files are written, one after the other.
        generator: whose config and start are written down.
        peft_config: of the method whose tensors it makes.
        shapes: of these tensors.
        weights: the generator's own, and those of modules that are trained whole.
    """
    target = Path(directory)
    stored = {name: p.detach().cpu().contiguous() for name, p in weights.items()}
    with whole_file(target / WEIGHTS) as written:
        written.write(to_bytes(stored, metadata={"format": "pt"}))
    record = {
        "format": VARIANTS[generator.config.variant].saved_format,
        "qpa_config": {k: plain(v) for k, v in dataclasses.asdict(generator.config).items()},
        "peft_config": peft_dict(peft_config),
        "shapes": shapes,
        "whole": sorted(set(weights) - {name for name, _ in generator.named_parameters()}),
        "start_norm": generator.start_norm(),
    }
    write_json(target / CONFIG, record)


# --- either kind, from a config -----------------------------------------------------------------


def adapt(
    base_model: PreTrainedModel, config: Config, task_type: str = "CAUSAL_LM"
) -> AdaptedModel:
    """Return the method on the language model: generated, or under ``qpa=off`` trained itself.

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
    """Return what a run's :meth:`~AdaptedModel.save_pretrained` wrote, on its language model.

    Evaluating.

    Raises:
        InputError: files that are missing, damaged, or were saved for another model.
    """
    kind = QPAModel if VARIANTS[config.qpa.variant].generates else ClassicalModel
    return kind.from_pretrained(base_model, directory)
