"""The typed schema of every config group: what is allowed, said once.

Hydra composes the YAML files of ``conf/`` into these dataclasses, so a misspelt key or a wrong
type is refused while composing; :func:`validate` then refuses values that are out of range.
Nothing is loaded, read or written before both have passed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from qpa_exp.errors import InputError


class Variant(StrEnum):
    """Which generator: the paper's equations, the authors' released code, ours, or none at all."""

    paper = "paper"
    released = "released"
    tuned = "tuned"
    off = "off"


class Backend(StrEnum):
    """What computes the circuit's probabilities: the module of that name in ``circuits``."""

    statevector = "statevector"
    torchquantum = "torchquantum"
    density_matrix = "density_matrix"
    qiskit = "qiskit"


class Noise(StrEnum):
    """The device whose noise ``density_matrix`` simulates: a snapshot that Qiskit Runtime ships."""

    none = "none"
    ibm_torino = "ibm_torino"
    ibm_fez = "ibm_fez"


class Gradient(StrEnum):
    """How the slope of the probabilities in the circuit's angles is found."""

    autograd = "autograd"
    parameter_shift = "parameter_shift"
    spsa = "spsa"


TABLE_1 = (32, 64, 128, 128, 64, 32, 32)
"""The mapping model's hidden widths. The paper prints one 32 -> 32 layer fewer; its parameter
counts need it."""


class Activation(StrEnum):
    """Between the mapping model's layers. ``none`` makes it a deep linear map."""

    none = "none"
    relu = "relu"
    gelu = "gelu"
    tanh = "tanh"


class MappingInit(StrEnum):
    """The mapping model's weights at the start.

    ``default`` is ``torch.nn.Linear``'s own, under which a signal fades by about two thirds at
    every layer and the chunks come out nearly alike; ``kaiming`` (He et al. 2015) keeps its size.
    """

    default = "default"
    kaiming = "kaiming"


class Feature(StrEnum):
    """What the mapping model reads of a probability p of N qubits.

    ``probability`` is p itself (Eq. 5), ``squashed`` the released code's
    (0.6 tanh(0.1 2^(N-1) p))^0.15 minus its mean, ``log`` log(1 + 2^N p): of the order of 1,
    however many qubits there are. ``normal`` is ``log`` less its mean over the circuit's states,
    and divided by its standard deviation.
    """

    probability = "probability"
    squashed = "squashed"
    log = "log"
    normal = "normal"


class BasisOrder(StrEnum):
    """Which basis states label the chunks: the first ``n_chunks``, or a fresh random sample."""

    fixed = "fixed"
    random = "random"


class PeftMethod(StrEnum):
    """The method whose tensors are trained (``qpa=off``) or generated: see ``conf/peft``."""

    lora = "lora"
    dora = "dora"
    prefix = "prefix"
    ffa = "ffa"
    prefix_tuning = "prefix_tuning"
    ia3 = "ia3"
    vera = "vera"
    vblora = "vblora"
    tinylora = "tinylora"
    unilora = "unilora"
    randlora = "randlora"
    fourierft = "fourierft"


class Dtype(StrEnum):
    """The type of the frozen language model's weights; the generator is always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    """How the frozen weights are kept: ``int8`` and ``nf4`` are bitsandbytes' own."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class Corpus(StrEnum):
    """The text that a run trains and tests on."""

    pydoc = "pydoc"
    wikitext2 = "wikitext2"
    ptb = "ptb"
    text = "text"


class Layout(StrEnum):
    """How text becomes examples: one padded line each (the paper), or packed blocks."""

    lines = "lines"
    blocks = "blocks"


class CacheMode(StrEnum):
    """Where the frozen backbone's hidden states are kept, where only the head is adapted.

    ``auto`` is ``disk`` where they fit and are worth it, else ``off``.
    """

    auto = "auto"
    disk = "disk"
    memory = "memory"
    off = "off"


class Schedule(StrEnum):
    """The learning rate after the warmup."""

    linear = "linear"
    constant = "constant"


class Optimizer(StrEnum):
    """AdamW for everything, or for the mapping model beside a search of the circuit's angles."""

    adamw = "adamw"
    cobyla = "cobyla"
    nelder_mead = "nelder_mead"
    spsa = "spsa"


class SearchOver(StrEnum):
    """What a search without gradients moves: the circuit's angles, or every parameter."""

    theta = "theta"
    all = "all"


class LoggerName(StrEnum):
    """Where curves go besides the run directory's own CSV file."""

    csv = "csv"
    wandb = "wandb"
    tensorboard = "tensorboard"


@dataclass
class TunedRecipe:
    """The generator of ``qpa=tuned``: what was searched on this model, else the paper's shape."""

    n_mlp: int = MISSING
    n_circuits: int = 1
    share_angles: bool = False
    window: int = 1
    feature: Feature = Feature.probability
    mapping_hidden: list[int] = field(default_factory=lambda: list(TABLE_1))
    scale: float = 0.02
    shuffle: bool = False


@dataclass
class RecipeConfig:
    """How this model is trained unless told otherwise; the other groups point here.

    ``lr`` is a table, variant by method; ``theta_lr`` is by variant, and the rest by method.
    ``others`` is any method that a table does not name.
    """

    n_mlp: int = MISSING
    tuned: TunedRecipe = field(default_factory=TunedRecipe)
    lr: dict[str, dict[str, float]] = field(default_factory=dict)
    theta_lr: dict[str, float] = field(default_factory=dict)
    max_epochs: dict[str, int] = field(default_factory=dict)
    warmup_steps: dict[str, int] = field(default_factory=dict)
    lora_dropout: float = 0.0
    batch_size: int = 1
    max_length: int = 128


@dataclass
class ModelConfig:
    """A causal language model, loaded by ``AutoModelForCausalLM`` and frozen."""

    name: str = MISSING
    name_or_path: str = MISSING
    """A hub id, a directory in the hub's format, or ``qpa_exp/tiny`` (the bundled model)."""
    revision: str | None = None
    """The hub's commit, tag or branch; null = the newest. What was loaded is in
    ``metrics.json``."""
    dtype: Dtype = Dtype.float32
    quantization: Quantization = Quantization.none
    """Of the layers of the backbone; the head and the embedding keep ``dtype``."""
    architecture: dict[str, Any] | None = None
    """``AutoConfig.for_model``'s arguments, so that ``plan`` needs neither weights nor network;
    null = read the ``config.json`` of ``name_or_path``."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class PeftMethodConfig:
    """One PEFT method on the modules it targets. A key that a method does not have is null."""

    method: PeftMethod = PeftMethod.lora
    r: int | None = 4
    lora_alpha: int | None = 8
    """The update is scaled by ``lora_alpha / r``; the paper takes 2 r."""
    lora_dropout: float | None = 0.0
    target_modules: list[str] | None = field(default_factory=lambda: ["lm_head"])
    """Names of linear layers, as PEFT takes them; ``[all-linear]`` is all but the head."""
    options: dict[str, Any] = field(default_factory=dict)
    """What is this method's alone: any other field of PEFT's own config class."""


@dataclass
class QPAConfig:
    """The generator: a circuit of ``n_layers`` repetitions and a mapping model.

    ``QPAConfig()`` is the variant ``tuned`` as any model starts with it; what was searched on the
    bundled model is in its recipe, ``conf/model/tiny.yaml``. Each difference between the variants
    is a field of its own: ``anchor``, ``activation``, ``mapping_init``, ``scale``, ``squash``,
    ``basis_order``, ``center``, and for ``tuned`` the number of circuits and the mapping's shape.
    """

    variant: Variant = Variant.tuned
    n_mlp: int = 64
    """Parameters generated from one basis state (Sec. 3.2)."""
    n_layers: int = 8
    """Repetitions of the ansatz, the paper's L."""
    n_circuits: int = 1
    """Circuits side by side (the paper: 1). A chunk reads its basis state's probability in every
    one of them."""
    share_angles: bool = False
    """Whether all circuits have the same angles. Circuit c then starts from the basis state |c>,
    so what is trained does not grow with their number, and there are at most 2^N of them."""
    window: int = 1
    """How many of a circuit's probabilities a chunk reads (the paper: 1): that of its own basis
    state, and those of the states that follow it; |0...0> follows the last. At most 2^N."""
    ansatz: str = "ry"
    """The circuit's layer, a name of ``circuits.ANSATZE`` (Eq. 1, 12, 13, 14; ``product``: no
    CNOTs), or a control: ``frozen`` (``ry``, not trained), ``classical`` (a softmax of free
    logits, one a chunk), ``none`` (every probability 1 / 2^N), ``gaussian`` (fixed normal
    numbers in the features' place)."""
    backend: Backend = Backend.statevector
    noise: Noise = Noise.none
    """For ``backend=density_matrix``."""
    device: str = "aer"
    """For ``backend=qiskit``: aer, fake_torino, fake_fez, or the name of an IBM device."""
    shots: str | None = None
    """Measurements of a circuit: a whole number, ``20x`` for 20 * 2^N, null = exact."""
    final_shots: str | None = None
    """Of the one fixed sample that is tested and exported; null = as ``shots``."""
    gradient: Gradient = Gradient.autograd
    spsa_step: float = 0.1
    """How far ``gradient=spsa`` moves all angles at once, in radians."""
    anchor: bool = True
    """Generate init + G(theta) - G(theta_0), so that training starts where the method starts."""
    feature: Feature = Feature.probability
    """What the mapping model reads of each probability."""
    mapping_hidden: list[int] = field(default_factory=lambda: list(TABLE_1))
    """Widths of the mapping model's hidden layers (Table 1)."""
    activation: Activation = Activation.gelu
    mapping_init: MappingInit = MappingInit.kaiming
    scale: float = 0.02
    """A constant factor on the generated vector: how far one step of the optimizer takes it."""
    squash: bool = False
    """The shorter name of ``feature=squashed``."""
    basis_order: BasisOrder = BasisOrder.fixed
    shuffle: bool = False
    """Put the generated parameters into a random order, drawn once from the seed: else a chunk is
    cut from one place of one tensor, and its n_mlp outputs always mean the same rows there."""
    center: bool = False
    """Subtract the mean of the generated vector (Appendix J)."""
    seed: int = 2025
    """Of the initial angles, the mapping model and the PEFT method's own initial tensors."""


@dataclass
class DataConfig:
    """A corpus, which of its splits serve for what, and how text becomes examples."""

    name: Corpus = Corpus.pydoc
    path: str | None = None
    """A file or directory of the user's own; null = the corpus' own source."""
    layout: Layout = Layout.blocks
    max_length: int = 128
    """Tokens an example: the block, or the length that lines are padded and cut to."""
    batch_size: int = 4
    eval_batch_size: int = 8
    cache: CacheMode = CacheMode.auto
    """Compute the backbone's hidden states once for all epochs, and on disk for all runs."""
    cache_dir: str | None = None
    """null = $QPA_EXP_CACHE, or qpa_exp in the user's cache directory."""
    cache_gib: float = 16.0
    """The most that hidden states may take, there or in memory."""
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"


@dataclass
class OptimConfig:
    """AdamW, a warmup, and a decay (Tables 4 to 7); or a search of the angles beside it."""

    name: Optimizer = Optimizer.adamw
    lr: float = MISSING
    theta_lr: float | None = None
    """Of the circuit's angles, in radians; null = ``lr``."""
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    schedule: Schedule = Schedule.linear
    warmup_steps: int = 0
    over: SearchOver = SearchOver.theta
    search_every_n_steps: int = 10
    max_evaluations: int | None = None
    """Of the loss, in one search; null = 2 (n + 1) for n parameters, and 2 for spsa."""
    radius: float = 0.1
    """How far a search looks at first, in radians for the angles."""


@dataclass
class TrainerConfig:
    """Lightning's own names for what it is asked to do."""

    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    max_epochs: int = MISSING
    max_steps: int = -1
    """Optimizer steps, where fewer than ``max_epochs`` give; -1 = no limit."""
    accumulate_grad_batches: int = 1
    gradient_checkpointing: bool = False
    """Keep only every layer's input, and compute the rest again in the backward pass."""
    gradient_clip_val: float | None = None
    log_every_n_steps: int = 10
    validate_every_n_steps: int | None = None
    """Optimizer steps between validations; null = once an epoch."""
    checkpoint_every_n_steps: int = 100
    limit_eval_batches: int | None = None
    """Stop validation and test after so many batches; null = all of them."""
    gradient_variance_starts: int | None = None
    """Random starts over which the variance of d loss / d theta is measured before the first step
    and logged (Appendix H); null = not."""
    progress_bar: bool = True
    compile: bool = False
    """Compile the generator with torch.compile."""


@dataclass
class LoggerConfig:
    """Where curves go, and under which names."""

    name: LoggerName = LoggerName.csv
    project: str = "qpa_exp"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftMethodConfig = field(default_factory=PeftMethodConfig)
    qpa: QPAConfig = field(default_factory=QPAConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 2025
    resume: str | None = None
    """The directory of an interrupted run to continue, as it was configured."""


# --- ranges -----------------------------------------------------------------------------------

_AT_LEAST: dict[str, int] = {
    "seed": 0,
    "qpa.seed": 0,
    "peft.r": 1,
    "peft.lora_alpha": 1,
    "qpa.n_mlp": 1,
    "qpa.n_layers": 1,
    "qpa.n_circuits": 1,
    "qpa.window": 1,
    "data.max_length": 2,
    "data.batch_size": 1,
    "data.eval_batch_size": 1,
    "optim.warmup_steps": 0,
    "optim.search_every_n_steps": 1,
    "optim.max_evaluations": 2,
    "trainer.devices": 1,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.validate_every_n_steps": 1,
    "trainer.checkpoint_every_n_steps": 1,
    "trainer.limit_eval_batches": 1,
    "trainer.gradient_variance_starts": 2,
}
_AT_MOST: dict[str, float] = {
    "optim.lr": 100.0, "qpa.n_layers": 10_000, "qpa.n_circuits": 10_000, "qpa.window": 100_000,
}  # fmt: skip
_POSITIVE = (
    "qpa.scale", "qpa.spsa_step", "data.cache_gib", "optim.lr", "optim.theta_lr", "optim.eps",
    "optim.radius", "trainer.gradient_clip_val",
)  # fmt: skip
_ONE_OF: dict[str, tuple[str, ...]] = {
    "trainer.accelerator": ("cpu", "gpu", "cuda", "mps", "auto"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
}


def validate(config: Config) -> None:
    """Refuse the first value that is out of range.

    Raises:
        InputError: one sentence with the key, its value and what would be right.
    """
    for key in (*_AT_LEAST, *_POSITIVE, *_AT_MOST):
        _check_range(key, _get(config, key))
    for key, choices in _ONE_OF.items():
        value = _get(config, key)
        if value not in choices:
            raise InputError(f"{key}={value} is unknown: give one of {', '.join(choices)}.")
    _validate_circuit(config.qpa)
    _validate_the_rest(config)


def validate_generator(config: QPAConfig) -> None:
    """Refuse the first value of a generator's config that is out of range, as :func:`validate`."""
    for key in (*_AT_LEAST, *_POSITIVE, *_AT_MOST):
        if key.startswith("qpa."):
            _check_range(key, getattr(config, key.removeprefix("qpa.")))
    _validate_circuit(config)


def count_shots(shots: str | None, n_qubits: int, key: str = "qpa.shots") -> int | None:
    """How many measurements a ``shots`` string asks for on ``n_qubits`` qubits; None = exact.

    Raises:
        InputError: neither a whole number from 1 up, nor one followed by ``x``.
    """
    if shots is None:
        return None
    match = re.fullmatch(r"(\d{1,12})(x?)", str(shots))
    if match is None or int(match.group(1)) < 1:
        raise InputError(
            f"{key}={shots} is no number of shots: give a whole number from 1 up, "
            "20x for 20 * 2^N, or null for exact probabilities."
        )
    count = int(match.group(1))
    return count * 2**n_qubits if match.group(2) else count


NO_CIRCUIT = ("none", "classical", "gaussian")
"""The controls in the circuit's place that measure nothing."""
UNTRAINED = (*NO_CIRCUIT, "frozen")
"""The controls without angles to train."""


def _validate_circuit(config: QPAConfig) -> None:
    """Refuse keys of the circuit that do not go together."""
    for key in ("shots", "final_shots"):
        count_shots(getattr(config, key), n_qubits=1, key=f"qpa.{key}")
    _validate_mapping(config)
    _refuse_keys_without_effect(config)
    if config.backend == Backend.qiskit:
        _validate_sampler(config)


def _refuse_keys_without_effect(config: QPAConfig) -> None:
    """A key that nothing reads is a mistake in what was meant."""
    plain = QPAConfig()
    ansatz, backend = config.ansatz, config.backend
    unused: dict[str, str] = {}
    if ansatz in UNTRAINED:
        why = f"qpa.ansatz={ansatz} has no angles to train"
        unused["gradient"] = why
    if ansatz in NO_CIRCUIT:
        why = f"qpa.ansatz={ansatz} has no circuit"
        unused |= dict.fromkeys(("shots", "final_shots", "noise", "backend", "device"), why)
    if backend != Backend.density_matrix:
        hint = "name the device instead, qpa.device=fake_torino"
        if backend != Backend.qiskit:
            hint = "give qpa.backend=density_matrix"
        unused.setdefault("noise", f"qpa.backend={backend} takes no noise model ({hint})")
    if backend != Backend.qiskit:
        unused.setdefault("device", f"qpa.backend={backend} runs on no device")
    for key, why in unused.items():
        value, default = getattr(config, key), getattr(plain, key)
        if value != default:
            right = "null" if default is None else default
            raise InputError(f"qpa.{key}={value} has no effect: {why}; leave it at {right}.")


def _validate_mapping(config: QPAConfig) -> None:
    for width in config.mapping_hidden:
        if width < 1:
            raise InputError(
                f"qpa.mapping_hidden={list(config.mapping_hidden)} has a layer of {width}: "
                "give widths from 1 up, or [] for no hidden layer."
            )
    if config.squash and config.feature in (Feature.log, Feature.normal):
        raise InputError(
            f"qpa.squash=true and qpa.feature={config.feature} ask for two features of one "
            "probability: give qpa.squash=false."
        )


def _validate_sampler(config: QPAConfig) -> None:
    """What measures real shots has no exact probabilities, and no slope but from more shots."""
    if config.shots is None:
        raise InputError(
            "qpa.shots=null: qpa.backend=qiskit measures, so say how often, for example "
            "qpa.shots=20x for 20 * 2^N."
        )
    if config.gradient == Gradient.autograd and config.ansatz not in UNTRAINED:
        raise InputError(
            "qpa.gradient=autograd needs a simulation to differentiate, which "
            "qpa.backend=qiskit is not: give qpa.gradient=parameter_shift or spsa."
        )
    if not re.fullmatch(r"\w+", config.device):
        raise InputError(
            f"qpa.device={config.device} is no name of a device: give aer, fake_torino, fake_fez, "
            "or an IBM device such as ibm_torino."
        )


def _check_range(key: str, value: float | int | None) -> None:
    if value is None:
        return
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        raise InputError(
            f"{key}={value} is too small: give a whole number of at least {_AT_LEAST[key]}."
        )
    if key in _POSITIVE and not (value > 0 and math.isfinite(value)):
        raise InputError(f"{key}={value} is out of range: give a finite number above 0.")
    if key in _AT_MOST and value > _AT_MOST[key]:
        raise InputError(f"{key}={value} is too large: give at most {_AT_MOST[key]:g}.")


def _validate_the_rest(config: Config) -> None:
    optim, trainer = config.optim, config.trainer
    if not 0 <= (config.peft.lora_dropout or 0) < 1:
        raise InputError(
            f"peft.lora_dropout={config.peft.lora_dropout} is out of range: "
            "give a probability of at least 0 and below 1."
        )
    if config.peft.target_modules == []:
        raise InputError(
            "peft.target_modules=[] targets nothing: name a layer, for example [lm_head]."
        )
    if not (optim.weight_decay >= 0 and math.isfinite(optim.weight_decay)):
        raise InputError(
            f"optim.weight_decay={optim.weight_decay} is out of range: give a number from 0 up."
        )
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise InputError(
            f"optim.betas={list(optim.betas)} is out of range: give two numbers from 0 to below 1."
        )
    if trainer.max_steps != -1 and trainer.max_steps < 1:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps} is out of range: give at least 1, "
            "or -1 for no limit."
        )
    if optim.name is not Optimizer.adamw and trainer.devices > 1:
        raise InputError(
            f"optim={optim.name} searches in one process: give trainer.devices=1, not "
            f"{trainer.devices}."
        )
    if config.data.name is Corpus.text and config.data.path is None:
        raise InputError("data=text needs data.path=<a text file or a directory of them>.")


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
