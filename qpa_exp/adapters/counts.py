"""How much a run trains, of what, and by how large a circuit, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpa_exp.adapters.catalogue import METHODS, check_length, check_method
from qpa_exp.config import Config, ModelConfig
from qpa_exp.generator.rules import VARIANTS, Chunking, count_generator, fit

if TYPE_CHECKING:
    from peft import PeftModel

    from qpa_exp.adapters.qpa_model import AdaptedModel


@dataclass(frozen=True)
class Counts:
    """The sizes of one run.

    Attributes:
        trainable_params: angles, weights and biases that are trained.
        generated_params: m, the size of the method's own tensors, which ``qpa=off`` trains.
        target_params: weights and biases of the targeted layers of the language model; of all of
            it for a method that targets none by name.
        n_mlp: parameters of a chunk; None without a generator.
        n_chunks: chunks that the vector is generated in; None without a generator.
        n_qubits: qubits of the circuit; None where there is none.
    """

    trainable_params: int
    generated_params: int
    target_params: int
    n_mlp: int | None = None
    n_chunks: int | None = None
    n_qubits: int | None = None

    @property
    def target_percent(self) -> float:
        """Trainable parameters in percent of the targeted layers, as the paper's Table 2."""
        return 100 * self.trainable_params / self.target_params


def plan_counts(
    config: Config,
    *,
    auto_class: str = "AutoModelForCausalLM",
    task_type: str = "CAUSAL_LM",
    n_classes: int | None = None,
) -> Counts:
    """Return the sizes that the configured model will have, from its shapes alone.

    For a method that states a formula, on the head of a model whose shape conf/ names, that is
    all; any other is built without storage, by the code that builds it for real.

    Args:
        config: of the run.
        auto_class: transformers' class that loads the task's model.
        task_type: PEFT's name for the task.
        n_classes: that a classifier tells apart; None for as many as the model has now.

    Raises:
        InputError: a target that the model does not have, too many qubits, too long examples.

    Examples:
        >>> from qpa_exp.cli import compose_config
        >>> plan_counts(compose_config(["model=gpt2", "qpa=paper"])).trainable_params
        106264
    """
    check_method(config)
    counts = _by_formula(config) if auto_class == "AutoModelForCausalLM" else None
    counts = counts or _by_building(config, auto_class, task_type, n_classes)
    if not VARIANTS[config.qpa.variant].generates:
        return counts
    m = counts.generated_params
    made = count_generator(m, config.qpa)
    Chunking(m, made.n_mlp).warn_if_oversized()
    whole = counts.trainable_params - m  # modules that are trained whole beside the method
    trained = made.trainable_params + whole
    return Counts(trained, m, counts.target_params, made.n_mlp, made.n_chunks, made.n_qubits)


def count(model: AdaptedModel) -> Counts:
    """Return the sizes of a model that has been built."""
    counts, generator = _of_built(model.peft_model), model.generator
    if generator is None:
        return counts
    whole, chunks = counts.trainable_params - counts.generated_params, generator.chunking
    n_qubits = chunks.n_qubits if VARIANTS[generator.config.variant].circuit else None
    sizes = (chunks.n_mlp, chunks.n_chunks, n_qubits)
    return Counts(generator.n_trainable + whole, chunks.m, counts.target_params, *sizes)


# --- by formula -------------------------------------------------------------------------------

_HEADS = {
    "gpt2": ("n_embd", "n_positions"),
    "gemma": ("hidden_size", "max_position_embeddings"),
    "gemma2": ("hidden_size", "max_position_embeddings"),
    "llama": ("hidden_size", "max_position_embeddings"),
}
"""Families whose lm_head is one matrix of vocab_size x width: their names for that width, and for
the longest sequence."""

_LARGEST = 2**24
"""The largest size that is believed without building."""


def _by_formula(config: Config) -> Counts | None:
    """None where the model's shape, the targets or the method are not known well enough."""
    if config.peft.target_modules != ["lm_head"] or (shape := _head_shape(config.model)) is None:
        return None
    vocabulary, width, positions = shape
    m = METHODS[config.peft.method].head_count(config.peft, vocabulary, width)
    if m is None:
        return None
    check_length(config, positions)
    return Counts(m, m, vocabulary * width)


def _head_shape(model: ModelConfig) -> tuple[int, int, int] | None:
    architecture = dict(model.architecture or {})
    names = _HEADS.get(str(architecture.pop("model_type", None)))
    tokens = ("bos_token_id", "eos_token_id")
    sizes = [value for name, value in architecture.items() if name not in tokens]
    if names is None or not all(isinstance(n, int) and 0 < n <= _LARGEST for n in sizes):
        return None  # what is wrong with it is said where it is built
    match [architecture.get(name) for name in ("vocab_size", *names)]:
        case [int(vocabulary), int(width), int(positions)]:
            return vocabulary, width, positions
    return None


# --- by building ------------------------------------------------------------------------------


def _by_building(
    config: Config, auto_class: str, task_type: str, n_classes: int | None = None
) -> Counts:
    from qpa_exp.adapters.peft_model import build_for_sizes, make_peft_config
    from qpa_exp.lm.loading import empty_model, load_architecture, n_positions

    architecture = load_architecture(config.model)
    if n_classes is not None:
        architecture.num_labels = n_classes
    check_length(config, n_positions(architecture, auto_class))
    built = build_for_sizes(
        lambda: empty_model(architecture, auto_class), make_peft_config(config.peft, task_type)
    )
    return _of_built(built)


def _of_built(model: PeftModel) -> Counts:
    from qpa_exp.adapters.peft_model import target_params, trainable_tensors, whole_modules

    def total(named: Any) -> int:
        return sum(p.numel() for _, p in named)

    m = total(trainable_tensors(model))
    return Counts(m + total(whole_modules(model)), m, target_params(model))


def describe(config: Config, counts: Counts) -> dict[str, str]:
    """One line for each figure: what it is, and its value."""
    named = config.peft.target_modules or ["the whole model"]
    targets = named if isinstance(named, str) else ", ".join(named)
    lines = {
        "trainable parameters": f"{counts.trainable_params:,}",
        f"  of {targets} ({counts.target_params:,})": f"{counts.target_percent:.3f} %",
        f"classical {config.peft.method} needs (m)": f"{counts.generated_params:,}",
    }
    if counts.n_chunks is not None:
        share = 100 * counts.trainable_params / counts.generated_params
        lines["  trainable of that"] = f"{share:.2f} %"
        lines["chunks"] = f"{counts.n_chunks:,} of n_mlp = {counts.n_mlp:,}"
        if counts.n_qubits is None:
            window = fit(counts.generated_params, config.qpa)[1].window
            lines["random numbers of a chunk"] = f"{window:,}, fixed"
        else:
            lines["qubits"] = f"{counts.n_qubits}, L = {config.qpa.n_layers}"
    return lines
