"""How much a run trains, of what, and by how large a circuit, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpa_exp.adapters.catalogue import METHODS, check_length, check_method
from qpa_exp.config import Config, ModelConfig
from qpa_exp.errors import InputError, first_line
from qpa_exp.generator.rules import VARIANTS, Chunking, count_generator

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from qpa_exp.adapters.adapted import AdaptedModel


@dataclass(frozen=True)
class Counts:
    """The sizes of one run.

    Attributes:
        trainable_params: angles, weights and biases that are trained.
        generated_params: m, the size of the method's own tensors, which ``qpa=off`` trains.
        target_params: weights and biases of the targeted layers of the language model; of all of
            it for a method that targets none by name.
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


def plan_counts(
    config: Config, *, auto_class: str = "AutoModelForCausalLM", task_type: str = "CAUSAL_LM"
) -> Counts:
    """The sizes that the configured model will have, from its shapes alone.

    For a method that states a formula, on the head of a model whose shape conf/ names, that is
    all; any other is built without storage, by the code that builds it for real.

    Args:
        config: of the run.
        auto_class: transformers' class that loads the task's model.
        task_type: PEFT's name for the task.

    Raises:
        InputError: a target that the model does not have, too many qubits, too long examples.

    Example:
        >>> from qpa_exp.cli import compose_config
        >>> plan_counts(compose_config(["model=gpt2", "qpa.n_mlp=2048"])).trainable_params
        106264
    """
    check_method(config)
    sizes = _by_formula(config) if auto_class == "AutoModelForCausalLM" else None
    sizes = sizes or _by_building(config, auto_class, task_type)
    if not VARIANTS[config.qpa.variant].generates:
        return sizes.counts(sizes.m, None, None)
    Chunking(sizes.m, config.qpa.n_mlp).warn_if_oversized()
    made = count_generator(sizes.m, config.qpa)
    return sizes.counts(made.trainable_params, made.n_chunks, made.n_qubits)


def count(model: AdaptedModel) -> Counts:
    """The sizes of a model that has been built."""
    sizes = _of_built(model.peft_model)
    if model.generator is None:
        return sizes.counts(sizes.m, None, None)
    chunking = model.generator.chunking
    sizes = _Sizes(chunking.m, sizes.whole, sizes.target)
    return sizes.counts(model.generator.n_trainable, chunking.n_chunks, chunking.n_qubits)


@dataclass(frozen=True)
class _Sizes:
    """Numbers in the method's tensors, in modules trained whole beside them, and in the targets."""

    m: int
    whole: int
    target: int

    def counts(self, trained: int, n_chunks: int | None, n_qubits: int | None) -> Counts:
        return Counts(trained + self.whole, self.m, self.target, n_chunks, n_qubits)


# --- by formula -------------------------------------------------------------------------------

_HEADS = {
    "gpt2": ("n_embd", "n_positions"),
    "gemma": ("hidden_size", "max_position_embeddings"),
    "gemma2": ("hidden_size", "max_position_embeddings"),
}
"""Families whose lm_head is one matrix of vocab_size x width: their names for that width, and for
the longest sequence."""


def _by_formula(config: Config) -> _Sizes | None:
    """None where the model's shape, the targets or the method are not known well enough."""
    if config.peft.target_modules != ["lm_head"] or (shape := _head_shape(config.model)) is None:
        return None
    vocabulary, width, positions = shape
    m = METHODS[config.peft.method].head_count(config.peft, vocabulary, width)
    if m is None:
        return None
    check_length(config, positions)
    return _Sizes(m, 0, vocabulary * width)


def _head_shape(model: ModelConfig) -> tuple[int, int, int] | None:
    architecture = model.architecture or {}
    names = _HEADS.get(str(architecture.get("model_type")))
    if names is None:
        return None
    match [architecture.get(name) for name in ("vocab_size", *names)]:
        case [int(vocabulary), int(width), int(positions)] if min(vocabulary, width, positions) > 0:
            return vocabulary, width, positions
    return None


# --- by building ------------------------------------------------------------------------------


def _by_building(config: Config, auto_class: str, task_type: str) -> _Sizes:
    import transformers

    from qpa_exp.adapters.peft_model import build_for_sizes, make_peft_config
    from qpa_exp.lm.loading import load_architecture, n_positions

    with _described(config.model):
        architecture = load_architecture(config.model)
        positions, layers = n_positions(architecture), _n_layers(architecture)
    if layers > _MOST_LAYERS:
        raise InputError(
            f"{_place(config.model)} has {layers:,} layers, more than the {_MOST_LAYERS:,} allowed."
        )
    check_length(config, positions)
    loader: Any = getattr(transformers, auto_class)

    def make_model() -> PreTrainedModel:
        with _described(config.model):
            return loader.from_config(architecture, trust_remote_code=False)

    return _of_built(build_for_sizes(make_model, make_peft_config(config.peft, task_type)))


_MOST_LAYERS = 10_000
"""Each is built, so their number is time."""


def _n_layers(architecture: Any) -> int:
    return int(getattr(architecture.get_text_config(), "num_hidden_layers", None) or 0)


@contextmanager
def _described(model: ModelConfig) -> Iterator[None]:
    """Refuse what transformers cannot build: it checks little, and raises all sorts."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{_place(model)} describes no model that transformers can build "
            f"({type(error).__name__}): {first_line(error)[:200]}"
        ) from error


def _place(model: ModelConfig) -> str:
    return f"model={model.name_or_path}" if model.architecture is None else "model.architecture"


def _of_built(model: PeftModel) -> _Sizes:
    from qpa_exp.adapters.peft_model import target_params, trainable_tensors, whole_modules

    def total(named: Any) -> int:
        return sum(p.numel() for _, p in named)

    return _Sizes(
        total(trainable_tensors(model)), total(whole_modules(model)), target_params(model)
    )


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
