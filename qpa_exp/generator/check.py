"""What a generator's config may hold: ranges, names, and which keys go together."""

from __future__ import annotations

from typing import Any

from qpa_exp.circuits.ansatze import ANSATZE
from qpa_exp.circuits.backends import BACKENDS
from qpa_exp.circuits.gradients import GRADIENTS
from qpa_exp.circuits.recorded_devices import NOISES
from qpa_exp.circuits.simulator import check_circuit
from qpa_exp.config import Config, QPAConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.generator.features import FEATURES, feature_name
from qpa_exp.generator.mapping_choices import ACTIVATIONS, MAPPING_INITS
from qpa_exp.generator.variants import VARIANTS
from qpa_exp.registry import Registry, read_key, refuse_unread

REGISTRIES: tuple[Registry[Any], ...] = (
    VARIANTS, ANSATZE, BACKENDS, NOISES, GRADIENTS, FEATURES, ACTIVATIONS, MAPPING_INITS,
)  # fmt: skip
"""Everything that a key of ``qpa`` may name."""


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
        >>> from qpa_exp.generator.check import check_generator
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
    if config.feature not in (QPAConfig.feature, feature_name(config)):
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
