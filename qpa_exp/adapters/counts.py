"""How much is trained, how much that stands for, and how it is cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from qpa_exp.adapters.building import build_without_storage, trainable_tensors, true_shape
from qpa_exp.adapters.methods.catalogue import make_peft_config
from qpa_exp.config import Config
from qpa_exp.generator import Chunking, Generator


@dataclass(frozen=True)
class Counts:
    """The sizes of one run.

    Attributes:
        trainable_params: angles, weights and biases that are trained.
        generated_params: m, the size of the method's own tensors, which ``qpa=off`` trains.
        target_params: weights and biases of the targeted layers of the language model; of all of
            it for ``prefix_tuning``, which acts in every layer and targets none by name.
        n_chunks: chunks that the vector is generated in; None without a generator.
        n_qubits: qubits of the circuit; None without a generator.
    """

    trainable_params: int
    generated_params: int
    target_params: int
    n_chunks: int | None
    n_qubits: int | None

    @property
    def target_percent(self) -> float:
        """Trainable parameters in percent of the targeted layers, as the paper's Table 2."""
        return 100 * self.trainable_params / self.target_params


def count_model(model: PeftModel, generator: Generator | None) -> Counts:
    """The sizes of a model that has been built; ``generator`` is None where m is trained itself."""
    if generator is not None:
        chunking = generator.chunking
        return Counts(
            trainable_params=generator.n_trainable,
            generated_params=chunking.m,
            target_params=_target_params(model),
            n_chunks=chunking.n_chunks,
            n_qubits=chunking.n_qubits,
        )
    m = sum(p.numel() for _, p in trainable_tensors(model))
    return Counts(m, m, _target_params(model), None, None)


def plan_counts(config: Config, architecture: PretrainedConfig) -> Counts:
    """The sizes that the configured model will have, from its shapes alone.

    The model is built without storage (torch's meta device), by the code that builds it for real.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
        built = build_without_storage(model, make_peft_config(config.peft))
        if config.qpa.variant == "off":
            return count_model(built, None)
        m = sum(p.numel() for _, p in trainable_tensors(built))
        Chunking(m, config.qpa.n_mlp).warn_if_oversized()
        return count_model(built, Generator(m, config.qpa))


def describe(config: Config, counts: Counts) -> dict[str, str]:
    """One line for each figure: what it is, and its value."""
    targets = ", ".join(config.peft.target_modules or ["the whole model"])
    lines = {
        "trainable parameters": f"{counts.trainable_params:,}",
        f"  of {targets} ({counts.target_params:,})": f"{counts.target_percent:.3f} %",
        f"classical {config.peft.method} needs (m)": f"{counts.generated_params:,}",
    }
    if counts.n_chunks is not None:
        share = 100 * counts.trainable_params / counts.generated_params
        lines["  trainable of that"] = f"{share:.2f} %"
        lines["chunks"] = f"{counts.n_chunks:,} of n_mlp = {config.qpa.n_mlp:,}"
        lines["qubits"] = f"{counts.n_qubits}, L = {config.qpa.n_layers}"
    return lines


def _target_params(model: PeftModel) -> int:
    layers: list[nn.Module] = [
        module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)
    ]
    if model.active_peft_config.is_prompt_learning:
        layers = [model.get_base_model()]
    return sum(true_shape(weight).numel() for layer in layers for weight in layer.parameters())
