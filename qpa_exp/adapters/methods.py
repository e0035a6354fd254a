"""The PEFT methods: HF PEFT's own layers, built on a frozen language model."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from qpa_exp.config import PeftMethodConfig
from qpa_exp.errors import InputError, nearest

# Within a layer the generated vector holds B first, then A: the released code's order.
_TENSOR_ORDER = ("lora_B", "lora_A")


def make_peft_config(config: PeftMethodConfig) -> PeftConfig:
    """HF PEFT's config for the method that ours names."""
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )


def build_peft_model(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The language model with the method's layers in place; only their tensors are trainable.

    ``model`` is changed in place, as PEFT does. The method's own initial tensors depend on
    ``seed`` alone, and the caller's random stream is left as it was.

    Raises:
        InputError: a target module that the model does not have.
    """
    check_targets(model, config)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lm_head is tied to the embedding in most models: that concerns merging an adapter into
        # the weights. The others are PEFT's remarks on what it does by itself.
        for remark in ("tie_word_embeddings", "fan_in_fan_out", "is_gradient_checkpointing"):
            warnings.filterwarnings("ignore", message=f".*{remark}.*")
        torch.manual_seed(seed)
        try:
            built = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"PEFT refuses this configuration: {error}") from error
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise InputError(f"{config.peft_type} has no trainable tensors on this model.")
    return built


def check_targets(model: nn.Module, config: PeftConfig) -> None:
    """Refuse a target that names no module, with the nearest that do."""
    targets = getattr(config, "target_modules", None)
    if targets is None or isinstance(targets, str):  # PEFT's own default, or a pattern
        return
    names = [name for name, _ in model.named_modules() if name]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"peft.target_modules: {target} is no module of this model; "
                f"the nearest are {', '.join(_nearest_layers(model, target))}."
            )


def _nearest_layers(model: nn.Module, target: str) -> list[str]:
    layers = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _has_weight(module)
    }
    return nearest(target, layers) or sorted(layers)


def _has_weight(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def trainable_tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What the method trains, by name, in the order of the generated vector."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
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
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name, child in module.named_children():
                if name != "base_layer":
                    child.train(mode)
