"""What a generator's config means, without torch: its names, its rules, and the sizes it gives."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.circuits.backends import BACKENDS
from qpa_exp.circuits.gradients import GRADIENTS
from qpa_exp.circuits.recorded_devices import NOISES
from qpa_exp.circuits.simulator import check_circuit, check_size
from qpa_exp.config import TABLE_1, Config, QPAConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.generator.features import FEATURES
from qpa_exp.machine import free_memory
from qpa_exp.registry import Registry, read_key, refuse_unread

_OF_A_GENERATOR = (
    *(f"qpa.{key.name}" for key in fields(QPAConfig) if key.name not in ("variant", "seed")),
    "trainer.compile",
    "trainer.gradient_variance_starts",
)
"""What only a generator reads. The seed is the classical method's, too."""


@dataclass(frozen=True)
class Variant:
    """An entry of ``qpa.variant``.

    Attributes:
        label: its name in figures.
        fixed: the keys of the generator that define it, and their values.
        generates: whether there is a generator.
        lowest_first: whether the mapping model reads a basis state's bits from the least
            significant one on.
    """

    label: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    generates: bool = True
    lowest_first: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The config keys that have an effect under it."""
        return _OF_A_GENERATOR if self.generates else ()


_PUBLISHED = {
    "anchor": False, "mapping_init": "default", "scale": 1.0, "feature": "probability",
    "shuffle": False, "window": 1, "n_circuits": 1, "mapping_hidden": list(TABLE_1),
}  # fmt: skip
VARIANTS: Registry[Variant] = Registry(
    "qpa.variant",
    {
        "paper": Variant(
            "the paper's equations",
            {**_PUBLISHED, "activation": "relu", "squash": False, "basis_order": "fixed",
             "center": False},
        ),
        "released": Variant(
            "the authors' code",
            {**_PUBLISHED, "activation": "none", "squash": True, "basis_order": "random",
             "center": True},
            lowest_first=True,
        ),
        "tuned": Variant("tuned"),
        "off": Variant("classical", generates=False),
    },
    decides=_OF_A_GENERATOR,
)  # fmt: skip


ACTIVATIONS: Registry[str | None] = Registry(
    "qpa.activation", {"none": None, "relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}
)
"""The names of ``torch.nn``'s modules."""

MAPPING_INITS: Registry[str | None] = Registry(
    "qpa.mapping_init", {"default": None, "kaiming": "kaiming_normal_"}
)
"""The names of functions in ``torch.nn.init``; None keeps torch's own weights and biases."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunking:
    """``m`` parameters in chunks of ``n_mlp``: one basis state of the circuit for each chunk."""

    m: int
    n_mlp: int

    @property
    def n_chunks(self) -> int:
        """ceil(m / n_mlp)."""
        return -(-self.m // self.n_mlp)

    @property
    def n_qubits(self) -> int:
        """ceil(log2 n_chunks), at least 1: enough basis states for the chunks (Eq. 8)."""
        return max(1, (self.n_chunks - 1).bit_length())

    def warn_if_oversized(self) -> None:
        """Say so where one chunk is larger than all that there is to generate."""
        if self.n_mlp > self.m:
            log.warning(
                "qpa.n_mlp=%d is larger than the %d parameters to generate: there is one chunk "
                "on one qubit, and the mapping model's last %d outputs are never used.",
                self.n_mlp, self.m, self.n_mlp - self.m,
            )  # fmt: skip


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorCounts:
    """The sizes of one generator.

    Attributes:
        n_mlp: parameters of a chunk.
        trainable_params: angles, weights and biases that are trained.
        n_chunks: chunks that the vector is generated in.
        n_qubits: qubits of the circuit.
    """

    trainable_params: int
    n_mlp: int
    n_chunks: int
    n_qubits: int


def count_generator(m: int, config: QPAConfig) -> GeneratorCounts:
    """The sizes of the generator of ``m`` parameters, as if it had been built.

    Raises:
        InputError: more qubits than its back end takes, or than there is memory for.

    Example:
        >>> from qpa_exp.config import QPAConfig
        >>> from qpa_exp.generator.rules import count_generator
        >>> count_generator(4 * (50257 + 768), QPAConfig())
        GeneratorCounts(trainable_params=9120, n_mlp=64, n_chunks=3190, n_qubits=12)
    """
    chunking, config = fit(m, config)
    n_chunks, n_qubits = chunking.n_chunks, chunking.n_qubits
    check_size(config, n_qubits)
    circuit = ANSATZE[config.ansatz].count(config, n_qubits, n_chunks)
    mapping = sum((wide + 1) * narrow for wide, narrow in pairwise(layer_widths(config, n_qubits)))
    counts = GeneratorCounts(circuit + mapping, chunking.n_mlp, n_chunks, n_qubits)
    _check_memory(config, counts)
    return counts


def _check_memory(config: QPAConfig, counts: GeneratorCounts) -> None:
    """Refuse a generator for which there is not the memory: its parameters, and one layer's output.

    A parameter has a gradient and AdamW's two moments beside it, each of 32 bits.
    """
    widest = max([*config.mapping_hidden, counts.n_mlp])
    needed = 16 * counts.trainable_params + 4 * counts.n_chunks * widest
    if needed > (free := free_memory()):
        keys = ("n_mlp", "window", "n_circuits", "n_layers")
        sizes: dict[str, int] = {key: getattr(config, key) for key in keys}
        sizes["mapping_hidden"] = max(config.mapping_hidden, default=0)
        key = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"A generator of {counts.trainable_params:,} trainable parameters and "
            f"{counts.n_chunks:,} chunks needs {needed / 2**30:.3g} GiB of memory and "
            f"{free / 2**30:.3g} GiB are free: give a smaller qpa.{key} than {sizes[key]}."
        )


def layer_widths(config: QPAConfig, n_qubits: int) -> tuple[int, ...]:
    """Of the mapping model, from a chunk's bits and features to its ``n_mlp`` parameters."""
    assert config.n_mlp is not None
    assert config.window is not None
    return (n_qubits + config.n_circuits * config.window, *config.mapping_hidden, config.n_mlp)


def fit(m: int, config: QPAConfig) -> tuple[Chunking, QPAConfig]:
    """The chunks of ``m`` parameters, and the config with nothing left open.

    With s the largest power of two up to sqrt(m) / 4, and at least 1:

    - ``n_mlp`` is s, and ``window`` 2 s, so that an eighth of m or less is trained; beside a given
      ``n_mlp`` above s, or several circuits, the window is as much narrower;
    - ``scale`` is 1.13 / sqrt(features of a chunk), so that a step of the optimizer takes a
      generated parameter equally far, from however many features; 0.02 behind hidden layers.

    docs/results/tuned_rule.md says where this was searched. There are never more circuits of the
    same angles than basis states to start from, nor is a window wider than these are many.
    """
    s = 2 ** max(0, (math.isqrt(m) // 4).bit_length() - 1)
    n_mlp = config.n_mlp or s
    chunking = Chunking(m, n_mlp)
    config = _fit_to_states(config, chunking.n_qubits)
    window = config.window or min(
        max(1, min(2 * s, 2 * s * s // n_mlp) // config.n_circuits), 2**chunking.n_qubits
    )
    by_rule = 0.02 if config.mapping_hidden else 0.1 * math.sqrt(128 / (window * config.n_circuits))
    scale = config.scale or by_rule
    return chunking, dataclasses.replace(config, n_mlp=n_mlp, window=window, scale=scale)


def _fit_to_states(config: QPAConfig, n_qubits: int) -> QPAConfig:
    most = 2**n_qubits
    if config.share_angles and config.n_circuits > most:
        log.warning(
            "qpa.n_circuits=%d share their angles, so each needs a basis state to start from: the "
            "%d qubits have %d, and that is how many circuits there are.",
            config.n_circuits, n_qubits, most,
        )  # fmt: skip
        config = dataclasses.replace(config, n_circuits=most)
    if config.window is not None and config.window > most:
        log.warning(
            "qpa.window=%d is wider than the %d basis states of %d qubits: a chunk reads the "
            "probability of each of them once.",
            config.window, most, n_qubits,
        )  # fmt: skip
        config = dataclasses.replace(config, window=most)
    return config


REGISTRIES: tuple[Registry[Any], ...] = (
    VARIANTS, ANSATZE, BACKENDS, NOISES, GRADIENTS, FEATURES, ACTIVATIONS, MAPPING_INITS,
)  # fmt: skip
"""Everything that a key of ``qpa`` may name."""


def feature_name(config: QPAConfig) -> str:
    """The feature that is read: ``qpa.squash`` is the short name of one."""
    return "squashed" if config.squash else config.feature


def check_generator(config: QPAConfig, *, saved: bool = False) -> None:
    """Refuse a config that is out of range, names what is not there, or contradicts itself.

    Imports no torch where the entries that are named need none.

    Args:
        config: of a generator.
        saved: was read from a file. There a key without effect is no mistake, and a published
            variant may have been changed.

    Raises:
        InputError: one sentence with the key, its value, and what would be right.

    Example:
        >>> from qpa_exp.config import QPAConfig
        >>> from qpa_exp.generator.rules import check_generator
        >>> check_generator(QPAConfig(ansatz="none", shots="20x"))
        Traceback (most recent call last):
        qpa_exp.errors.InputError: qpa.shots=20x has no effect: qpa.ansatz=none does not read it; \
leave it at null.
    """
    validate(config, "qpa.")
    whole = Config(qpa=config)
    for registry in REGISTRIES:
        _ = registry[read_key(whole, registry.key)]
    if not saved:
        refuse_unread(whole, REGISTRIES)
        _check_variant(config)
    if config.squash and config.feature not in ("probability", "squashed"):
        raise InputError(
            f"qpa.squash=true and qpa.feature={config.feature} ask for two features of one "
            "probability: give qpa.squash=false."
        )
    check_circuit(config)


def _check_variant(config: QPAConfig) -> None:
    """What defines a published variant cannot be changed under its name."""
    for key, value in VARIANTS[config.variant].fixed.items():
        if (found := getattr(config, key)) != value:
            raise InputError(
                f"qpa.{key}={_spelled(found)}: qpa={config.variant} has {_spelled(value)}, which "
                "makes it what it is; give qpa=tuned to choose it."
            )


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
