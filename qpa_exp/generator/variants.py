"""Which generator (``qpa.variant``): the paper's, its authors' code, ours, or none at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qpa_exp.config import TABLE_1, QPAConfig
from qpa_exp.registry import Registry

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
