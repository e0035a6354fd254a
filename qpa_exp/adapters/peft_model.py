"""A PEFT method on a frozen language model: its layers, and the tensors that it trains."""

from __future__ import annotations

import json
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper, register_peft_method
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from qpa_exp.adapters.catalogue import METHODS, Method, pefts_types
from qpa_exp.config import PeftMethodConfig
from qpa_exp.errors import InputError, nearest, sentence_end
from qpa_exp.files import fits, typed
from qpa_exp.generator.generator import as_read_now, drawn_from
from qpa_exp.lm.loading import keep_gradients


def checkpoint_activations(model: PreTrainedModel, *args: Any, **options: Any) -> None:
    """Let every layer keep its input alone, and compute the rest again in the backward pass.

    Args:
        model: the frozen language model, with or without PEFT's layers in it.
        args: what the model's own ``activation_checkpointing_enable`` takes, as ``options``.
        options: see ``args``.
    """
    model.activation_checkpointing_enable(*args, **options)
    compute_again_the_same(model)


def compute_again_the_same(model: nn.Module) -> None:
    """Let every layer that is checkpointed compute the same in the backward pass as before it."""
    for layer in _checkpointed(model):
        layer._gradient_checkpointing_func = _Checkpoint(layer, layer._gradient_checkpointing_func)


def _checkpointed(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            yield module


@dataclass
class _Checkpoint:
    """A layer's checkpointing function, whose layer has no mark of training while it computes.

    It reads the generated vectors that it read at first, whatever has been made since. A copy of
    the layer has its own.
    """

    layer: Any
    own: Callable[..., Any]

    def __call__(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """Return what ``compute`` gives for the inputs, and keep these alone."""
        reading, layer = as_read_now(self.layer), self.layer

        def frozen(*inputs: Any) -> Any:
            marked, layer.training = layer.training, False
            try:
                with reading():
                    return compute(*inputs)
            finally:
                layer.training = marked

        return self.own(frozen, *inputs)


def register(name: str, config_class: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Make a method known to PEFT under ``name``; its tensors' names begin with ``name_``.

    PEFT asks for a member of its ``PeftType``, which is closed: one is added, as the enum's own
    class would have made it. A registry of PEFT's that took names of others would end this.
    """
    value = name.upper()
    if value in PeftType.__members__:
        return
    member = str.__new__(PeftType, value)
    member._name_, member._value_ = value, value
    setattr(PeftType, value, member)
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = member
    PeftType._value2member_map_[value] = member
    register_peft_method(name=name, config_cls=config_class, model_cls=tuner)


_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules")
"""Our typed keys; what is a method's alone is in ``peft.options``, under PEFT's own names."""

# What a run decides, or what would train the language model's own weights.
_NO_OPTIONS = {item.name for item in fields(PeftConfig)} | {
    "bias", "modules_to_save", "num_layers", "num_attention_heads", "token_dim",
    "num_transformer_submodules", "megatron_config", "megatron_core",
}  # fmt: skip

ALL_LINEAR = "all-linear"
"""The target that means every linear layer but the output head."""


def make_peft_config(config: PeftMethodConfig, task_type: str = "CAUSAL_LM") -> PeftConfig:
    """PEFT's config for the method that ours names.

    A key that is null is left to PEFT's own default. A method that targets no modules by name
    leaves the schema's default, ``[lm_head]``, unread.

    Raises:
        InputError: a key or an option that the method does not have, or a value that it refuses.
    """
    name = config.method
    method = METHODS[name]
    has = {f.name for f in fields(method.config_class())}
    values = {key: getattr(config, key) for key in _KEYS if getattr(config, key) is not None}
    if "target_modules" not in has and config.target_modules == PeftMethodConfig().target_modules:
        del values["target_modules"]
    for key, value in values.items():
        if key not in has:
            own = ", ".join([*(f"peft.{k}" for k in _KEYS if k in has), "peft.options"])
            raise InputError(f"peft.{key}={value} is no key of peft={name}: it takes {own}.")
    for option, value in config.options.items():
        _check_option(name, method, option, value)
    if values.get("target_modules") == [ALL_LINEAR]:  # PEFT takes this word by itself
        values["target_modules"] = ALL_LINEAR
    try:
        return method.config_class()(
            task_type=task_type, **values, **method.fixed, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"peft={name} refuses this configuration: {sentence_end(error)}"
        ) from error


def options_of(method: Method) -> dict[str, Any]:
    """Return what ``peft.options`` may hold, with the types that PEFT states."""
    config_class = method.config_class()
    hints = typing.get_type_hints(config_class)
    taken = {*_NO_OPTIONS, *_KEYS, *method.fixed}
    own = [item for item in fields(config_class) if item.name not in taken]
    return {f.name: hints[f.name] | None if f.default is None else hints[f.name] for f in own}


def _check_option(name: str, method: Method, option: str, value: object) -> None:
    options = options_of(method)
    if option in _KEYS:
        raise InputError(f"peft.options.{option} is a key of its own: write peft.{option}={value}.")
    if option not in options:
        close = nearest(option, options) or sorted(options)
        raise InputError(
            f"peft.options.{option} is no option of peft={name}: did you mean {' or '.join(close)}?"
        )
    if not _fits(value, options[option]):
        raise InputError(
            f"peft.options.{option}={value} has the wrong type: give {_words(options[option])}."
        )


_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    list: "a list", dict: "a table", types.NoneType: "null",
}  # fmt: skip


def _choices(hint: Any) -> list[Any]:
    """Return the types that a hint allows, or the values."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(hint) for choice in _choices(part)]
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    return [origin or hint]


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from a config is of a hint's type; of one of PEFT's own, PEFT decides."""
    own = (c for c in _choices(hint) if isinstance(c, type) and c not in _WORDS)
    return fits(value, hint) or any(own)


def _words(hint: Any) -> str:
    choices = [_WORDS.get(c, c) if isinstance(c, type) else c for c in _choices(hint)]
    return " or ".join(dict.fromkeys(map(str, choices)))


# Within a layer the generated vector holds B first, then A: the released code's order. DoRA's
# magnitudes come last. Other methods keep PEFT's order.
_TENSOR_ORDER = ("lora_B", "lora_A", "lora_magnitude_vector")

# Methods whose r is a rank. VeRA's r is a number of random directions, which may be larger.
_RANKED = {
    PeftType.LORA, PeftType.VBLORA, PeftType.TINYLORA, PeftType.UNILORA, PeftType.RANDLORA,
}  # fmt: skip

# Methods whose tensors are embeddings.
_BEFORE_THE_TEXT = {PeftType.PROMPT_TUNING, PeftType.P_TUNING}


def build_peft_model(
    model: PreTrainedModel,
    config: PeftConfig,
    seed: int,
    *,
    adapter_name: str = "default",
    saved: bool = False,
) -> PeftModel:
    """Give the language model with the method's layers in place; only their tensors are trainable.

    ``model`` is changed in place, as PEFT does. The method's own initial tensors depend on
    ``seed`` alone, and the caller's random stream is left as it was.

    Args:
        model: the language model.
        config: of the method.
        seed: of the method's initial tensors.
        adapter_name: PEFT's name for the adapter.
        saved: whether ``config`` was saved with a trained adapter. PEFT has then written the names
            of all layers in the place of ``all-linear``, and some may be narrower than the rank.

    Raises:
        InputError: a model that has an adapter already, a target module that the model does not
            have, a rank that is larger than its layer, a method that trains nothing or could not
            be loaded again, or anything else that PEFT refuses.
    """
    check_unadapted(model)
    _check_compiles(config)
    check_readable(config)
    if not saved:
        check_rank(model, config)
    _resolve_targets(model, config)
    check_targets(model, config)
    keep_gradients(model)
    if config.peft_type in _BEFORE_THE_TEXT and getattr(config, "token_dim", None) is None:
        # PEFT would take the layers' width, which is not that of OPT's embeddings.
        embedding: Any = model.get_input_embeddings()
        config.token_dim = embedding.weight.shape[1]  # type: ignore[attr-defined]
    with put_back_where_it_fails(model):
        with _putting_in_place(seed):
            built = get_peft_model(model, config, adapter_name)
        if not any(p.requires_grad and p.numel() for p in built.parameters()):
            raise InputError(
                f"{PeftType(config.peft_type).value} trains no tensors of this model: "
                "give other peft.options, or other peft.target_modules."
            )
        _start_all_magnitudes(built, adapter_name)
    return built


def take_off(model: PeftModel) -> Any:
    """Return the language model itself, without the method; ``model`` must not be used after."""
    if isinstance(model.base_model, BaseTuner):
        return model.unload()
    language_model, base_model = model.get_base_model(), typing.cast(Any, model.base_model)
    if not model.active_peft_config.is_prompt_learning:  # adaption_prompt, whose tuner is its own
        base_model.disable_adapter_layers()
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config
    return language_model


@contextmanager
def put_back_where_it_fails(model: nn.Module) -> Iterator[None]:
    """Put a language model's own layers back, where what is done in this context fails."""
    before = [(module, dict(module.named_children())) for module in model.modules()]
    try:
        yield
    except Exception:
        for module, children in before:
            for name, child in children.items():
                setattr(module, name, child)
        if hasattr(model, "peft_config"):
            del model.peft_config
        raise


def check_unadapted(model: nn.Module) -> None:
    """Refuse a language model with an adapter in it: a second one would start from the first.

    Raises:
        InputError: there is one.
    """
    layers = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    if layers or getattr(model, "peft_config", None):
        raise InputError(
            "This language model has an adapter already: call unload() on the adapted model, or "
            "load the language model again."
        )


def add_method(model: PeftModel, adapter_name: str, config: PeftConfig, seed: int) -> None:
    """Put one more adapter of the same method on a model; it is not yet the active one.

    Raises:
        InputError: anything that PEFT refuses, or that could not be loaded again.
    """
    check_readable(config)
    with _putting_in_place(seed):
        model.add_adapter(adapter_name, config)
    _start_all_magnitudes(model, adapter_name)


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keep quiet what PEFT remarks on what it does by itself.

    lm_head is tied to the embedding in most models: that concerns merging into the weights alone.
    """
    with warnings.catch_warnings():
        for remark in (
            "tie_word_embeddings", "fan_in_fan_out", "is_gradient_checkpointing",
            r"_pattern keys did not match.*gate_up_proj",  # of the experts, which it adds itself
        ):  # fmt: skip
            warnings.filterwarnings("ignore", message=f".*{remark}.*")
        yield


@contextmanager
def _putting_in_place(seed: int) -> Iterator[None]:
    """Let PEFT draw from ``seed``, and say in one sentence what it refuses."""
    with drawn_from(seed), without_remarks():
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # PEFT's, and torch's in it, for what they cannot use
            raise InputError(f"PEFT refuses this configuration: {sentence_end(error)}") from error


def build_for_sizes(
    make_model: Callable[[], PreTrainedModel], config: PeftConfig, *, saved: bool = False
) -> PeftModel:
    """:func:`build_peft_model` for the sizes alone, with as little storage as the method can do.

    Most methods are built on torch's meta device, where nothing has any. Some compute with
    numbers while they are built: Uni-LoRA counts how often each of its own is used, and FRoD
    decomposes the weights. Then the method's tensors are real ones, or the targeted layers too.

    Args:
        make_model: gives the language model, a new one at each call.
        config: of the method.
        saved: as :func:`build_peft_model` takes it.
    """
    meta = torch.device("meta")
    for tensors, layers in ((meta, False), (nullcontext(), False), (nullcontext(), True)):
        with meta:
            model = make_model()
        if layers:
            for layer in _targeted(model, config).values():
                for weight in layer.to_empty(device="cpu").parameters():
                    nn.init.normal_(weight)
        try:
            with tensors:
                return build_peft_model(model, config, seed=0, saved=saved)
        except InputError as error:
            if layers or error.__cause__ is None:
                raise
    raise AssertionError("the last attempt returns or raises")


def _check_compiles(config: PeftConfig) -> None:
    targets = getattr(config, "target_modules", None)
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        raise InputError(
            f"peft.target_modules={targets} is no regular expression: {sentence_end(error)}"
        ) from None


def _resolve_targets(model: PreTrainedModel, config: Any) -> None:
    """Say in PEFT's words what a config targets.

    PEFT knows ``all-linear`` by itself alone, not in a list; and it turns the names of a mixture's
    experts into those of the parameters that hold them all.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    targets = getattr(config, "target_modules", None)
    if targets is None:
        return
    listed = not isinstance(targets, str) and ALL_LINEAR in targets
    if listed:
        config.target_modules = ALL_LINEAR
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        raise InputError(f"PEFT refuses this configuration: {sentence_end(error)}") from None
    more = {*targets} - {ALL_LINEAR} if listed else set()
    if more:
        found = config.target_modules
        config.target_modules = (_linear(model) if isinstance(found, str) else found) | more


def _linear(model: PreTrainedModel) -> set[str]:
    """Name the linear layers but the output head, as PEFT's ``all-linear`` does."""
    head, kinds = model.get_output_embeddings(), (nn.Linear, Conv1D)
    named = model.named_modules()
    return {name for name, layer in named if isinstance(layer, kinds) and layer is not head}


def check_targets(model: nn.Module, config: PeftConfig) -> None:
    """Refuse a target that names no module, with the nearest that do."""
    targets = getattr(config, "target_modules", None)
    names = [name for name, _ in model.named_modules() if name]
    if config.peft_type == PeftType.ADAPTION_PROMPT and isinstance(targets, str):
        targets = [targets]  # the last part of names, which PEFT itself fills in
    if isinstance(targets, str):
        _check_pattern(targets, model, names)
        return
    for target in targets or ():  # none: PEFT's own default
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"peft.target_modules: {target} is no module of this model; "
                f"the nearest are {', '.join(_nearest_layers(model, target))}."
            )


def _check_pattern(pattern: str, model: nn.Module, names: Sequence[str]) -> None:
    if pattern.lower() == ALL_LINEAR:
        return
    if not any(re.fullmatch(pattern, name) for name in names):
        raise InputError(
            f"peft.target_modules={pattern} is a regular expression for the whole name of a "
            f"module, such as {_an_example(model)}, and none of this model fits: give another, or "
            f"the last parts of names as a list, for example "
            f"[{', '.join(_nearest_layers(model, pattern)[:3])}]."
        )


def _an_example(model: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if _has_weight(module)), "lm_head")


def check_rank(model: nn.Module, config: PeftConfig) -> None:
    """Refuse a rank that is larger than a targeted layer's smaller side."""
    rank = getattr(config, "r", None)
    if config.peft_type not in _RANKED or not isinstance(rank, int):
        return
    for name, module in _targeted(model, config).items():
        shape = true_shape(module.weight)
        if rank > min(shape):
            raise InputError(
                f"peft.r={rank} is larger than {name}, whose weight is "
                f"{' x '.join(map(str, shape))}: give at most {min(shape)}."
            )


def _targeted(model: nn.Module, config: PeftConfig) -> dict[str, Any]:
    """Return the layers with a matrix that the config names; none where it leaves them to PEFT."""
    if getattr(config, "target_modules", None) in (None, ALL_LINEAR):
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if _has_weight(module) and check_target_module_exists(config, name)
    }


def _start_all_magnitudes(model: nn.Module, adapter_name: str) -> None:
    for name, module in model.named_modules():
        magnitudes = getattr(module, "lora_magnitude_vector", None)
        if magnitudes and adapter_name in magnitudes:
            _start_magnitudes(module, name.rpartition(".")[2], magnitudes[adapter_name])


def _start_magnitudes(layer: Any, name: str, dora: Any) -> None:
    """Let DoRA's magnitudes start at exactly the norms that its forward pass divides by.

    PEFT takes the first in the type of the weights and the second in that of the adapter, so with
    weights of 16 bits it would start beside the base model.

    Raises:
        InputError: a row of zeros, such as a padding token's: DoRA divides by its norm.
    """
    weight = layer.get_base_layer().weight.detach()
    if weight.dtype != dora.weight.dtype:
        weight = weight.to(dora.weight.dtype)
        norms = dora.get_weight_norm(weight, torch.zeros(()).to(weight), 1.0)
        dora.weight.data.copy_(norms)
    zeros = 0 if weight.is_meta else int((dora.weight == 0).sum())
    if zeros:
        raise InputError(
            f"{name} has rows of zeros ({zeros} of them), and DoRA divides by the norm of "
            "each: take peft=lora, or other peft.target_modules."
        )


def _nearest_layers(model: nn.Module, target: str) -> list[str]:
    layers = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _has_weight(module)
    }
    return nearest(target, layers) or sorted(layers)


def _has_weight(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def true_shape(weight: torch.Tensor) -> torch.Size:
    """Return a weight's shape; that of four bits is packed, and keeps its own beside it."""
    quantized = getattr(weight, "quant_state", None)
    return weight.shape if quantized is None else torch.Size(quantized.shape)


def whole_modules(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of modules that are trained whole beside the method, by name.

    PEFT has a classifier's new head among them, ``modules_to_save``. They are trained as they
    are, never generated: a head starts at random, and is small.
    """
    prefixes = tuple(
        f"{name}." for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)
    )
    named = model.named_parameters()
    return [(name, p) for name, p in named if p.requires_grad and name.startswith(prefixes)]


def trainable_tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return what the method trains, by name, in the order of the generated vector."""
    whole = {name for name, _ in whole_modules(model)}
    named = [
        (name, p) for name, p in model.named_parameters() if p.requires_grad and name not in whole
    ]
    first_seen: dict[str, int] = {}
    for name, _ in named:
        first_seen.setdefault(_split_name(name)[0], len(first_seen))

    def place(item: tuple[str, nn.Parameter]) -> tuple[int, int]:
        layer, kind = _split_name(item[0])
        return first_seen[layer], _TENSOR_ORDER.index(kind) if kind in _TENSOR_ORDER else -1

    return sorted(named, key=place)


def _split_name(name: str) -> tuple[str, str]:
    """``...lm_head.lora_A.default.weight`` -> its layer ``...lm_head`` and its kind ``lora_A``."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part in _TENSOR_ORDER:
            return ".".join(parts[:position]), part
    return name, ""


def train_adapter_only(model: PeftModel, mode: bool) -> None:
    """Put the method's layers in training mode and the frozen backbone in evaluation mode.

    Dropout then acts in the method alone: the hidden states of a frozen backbone are constants.
    An embedding computes the same in either mode; what a user hooks to it, as the noise of NEFTune,
    goes by the mode.
    """
    model.eval()
    language_model: Any = model.get_base_model()
    embedding = language_model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.training = mode
    if hasattr(model, "prompt_encoder"):  # prefix_tuning has no layers, but an encoder beside them
        model.prompt_encoder.train(mode)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.training = mode
            for name, child in module.named_children():
                if name != "base_layer":
                    child.train(mode)
    for layer in _checkpointed(model):  # these, and nothing within them
        layer.training = mode


def target_params(model: PeftModel) -> int:
    """Weights and biases of the targeted layers; of the whole model where none is by name."""
    tuned: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    weights = {}  # each once: PEFT wraps a module of experts once for each of its parameters
    for layer in tuned or [model]:
        base = layer.get_base_layer() if tuned else model.get_base_model()
        one = getattr(layer, "parameter_name", None)
        for name, weight in base.named_parameters():
            frozen = not weight.requires_grad and "parametrizations." not in name
            if frozen and one in (None, name):
                weights[id(weight)] = true_shape(weight).numel()
    return sum(weights.values())


# --- a method's config as plain data --------------------------------------------------------

_OURS_TO_SAY = {
    "auto_mapping", "megatron_config", "megatron_core", "tokenizer_kwargs", "adapters",
    "shadow_model", "prompt_tuning_init_state_dict_path", "layer_replication", "runtime_config",
}  # fmt: skip
"""What PEFT would import, fetch, read or multiply by: never taken from a file."""

_PATTERNS = ("modules", "pattern")
_FILES = ("_file", "_path")
_MOST_REPETITIONS = 4


def peft_config_of(record: Any) -> PeftConfig:
    """PEFT's config from plain data; nothing that it names is imported, fetched or run.

    Raises:
        ValueError: no such method, a key that it does not have or that a file may not set, or a
            value of another type.
    """
    kind = record.get("peft_type") if isinstance(record, dict) else None
    if kind not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        for method in METHODS.own.values():  # makes them known to PEFT, which reads their names
            method.config_class()
    types: dict[Any, Any] = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    if not isinstance(kind, str) or kind not in types or hasattr(types[kind], "method_type"):
        raise ValueError(f"its peft_type is {str(kind)[:100]}, which names no method")
    if kind.lower() in pefts_types():
        _ = METHODS[kind.lower()]
    config_class = types[kind]  # none of those whose tensors are generated
    hints = typing.get_type_hints(config_class)
    known = {item.name: item for item in fields(config_class)}
    given = {key: value for key, value in record.items() if key not in _OURS_TO_SAY}
    for key, value in record.items():
        if key not in known and key not in _OURS_TO_SAY:
            raise ValueError(f"{key[:100]} is no key of PEFT's {kind}")
        if key in _OURS_TO_SAY and value not in (None, getattr(config_class, key, None)):
            raise ValueError(f"{key} is {str(value)[:100]}, which no file may set")
        if key in given:
            _check_value(key, value, hints[key])
    present = {k: v for k, v in given.items() if v is not None or known[k].default is not MISSING}
    config: PeftConfig = config_class(**present)
    return config


def _check_value(key: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type, or a pattern that may take for ever, down to a table in it.

    Raises:
        ValueError: says which.
    """
    if value is None:
        return
    if any(word in key for word in _PATTERNS) and any(map(_is_slow, _patterns(value))):
        raise ValueError(
            f"{key} is {str(value)[:100]}, a pattern that may take for ever: give one that repeats "
            f"no group, and at most {_MOST_REPETITIONS} characters on a way through it"
        )
    if fits(value, hint):
        return
    table = next(filter(is_dataclass, typing.get_args(hint)), None)
    if table is None or not isinstance(value, dict):
        raise ValueError(f"{key} is {str(value)[:100]}")
    typed(typing.cast(type, table), value, key)
    for name, item in value.items():
        if name.endswith(_FILES) and item is not None:
            raise ValueError(f"{key}.{name} is {str(item)[:100]}, which no file may set")
        _check_value(name, item, Any)


def _patterns(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, dict | list) else [value])]


_ATOM = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|\(\?(?:P<\w+>|<?[=!:]|[aiLmsu]+\))?|.", re.DOTALL
)
"""A piece of a regular expression: an escape, a set, the beginning of a group, or a character."""


def _is_slow(pattern: str) -> bool:
    """Whether a regular expression may take for ever: a repeated group, or many repetitions.

    Of alternatives only one is on a way through it. What doubles the ways, as an optional piece and
    two alternatives do, counts as a quarter of a repetition. What this does not know is slow.
    """
    repeats = [[0.0]]  # for each group that is open: the repetitions in each of its alternatives
    last = ""
    for atom in _ATOM.findall(pattern):
        if atom.startswith("(") and not atom.endswith(")"):
            if atom == "(?":  # a comment, a condition, or flags for a part
                return True
            repeats.append([0.0])
        elif atom == ")":
            if len(repeats) == 1:
                return True
            most = _of_alternatives(repeats.pop())
            repeats[-1][-1] += most
        elif atom == "|":
            repeats[-1].append(0.0)
        elif atom in ("*", "+", "{"):
            if last == ")":
                return True
            repeats[-1][-1] += 1
        elif atom == "?" and last not in ("*", "+", "?", "}"):
            repeats[-1][-1] += 0.25
        last = atom
    return len(repeats) > 1 or _of_alternatives(repeats[0]) > _MOST_REPETITIONS


def _of_alternatives(repeats: list[float]) -> float:
    return max(repeats) + math.log2(len(repeats)) / 4


def check_readable(config: PeftConfig) -> None:
    """Refuse a method that could be trained and saved, and then not be loaded.

    Raises:
        InputError: :func:`peft_config_of` refuses what would be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT said so when the config was made
            peft_config_of(json.loads(json.dumps(peft_dict(config))))
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise InputError(
            f"The method could not be loaded again once it is saved: {sentence_end(error)}"
        ) from error


def peft_dict(config: PeftConfig) -> dict[str, Any]:
    """PEFT's config as plain JSON, without the class names that its own loader would look up."""
    record = {key: plain(value) for key, value in config.to_dict().items() if value is not None}
    for name in ("auto_mapping", "inference_mode", "runtime_config"):
        record.pop(name, None)
    return record


def plain(value: Any) -> Any:
    """Give a set as a sorted list, and a member of an enum as its value."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
