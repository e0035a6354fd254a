"""``qpa_exp.QPAConfig``: the generator's config as Python code makes it, checked at once."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from qpa_exp import config as schema
from qpa_exp.errors import InputError
from qpa_exp.files import fits
from qpa_exp.generator.rules import VARIANTS, check_generator


@dataclass(eq=False)
class QPAConfig(schema.QPAConfig):
    """The generator: a circuit and a mapping model; its fields are the keys of ``qpa`` in a run.

    ``QPAConfig()`` is the variant ``tuned``. The published variants, each of which is a set of
    values, are made by :meth:`paper` and :meth:`released`. Every value is checked when the config
    is made, as the config keys are; ``shots`` and the like may be numbers.

    Raises:
        InputError: one sentence with the key, its value, and what would be right.

    Examples:
        >>> from qpa_exp import QPAConfig
        >>> QPAConfig(n_mlp=64).variant, QPAConfig.paper(n_mlp=64).mapping_hidden
        ('tuned', [32, 64, 128, 128, 64, 32, 32])
        >>> QPAConfig.released(shots=1000).shots, QPAConfig.tuned() == QPAConfig()
        ('1000', True)
        >>> QPAConfig(window=0)
        Traceback (most recent call last):
        qpa_exp.errors.InputError: qpa.window=0 is too small: give a whole number of at least 1.
    """

    def __post_init__(self) -> None:
        """Check every value."""
        hints = typing.get_type_hints(schema.QPAConfig)
        for item in dataclasses.fields(schema.QPAConfig):
            key, value, hint = item.name, getattr(self, item.name), hints[item.name]
            if not fits(value, hint) and fits("", hint) and fits(value, int | float):
                value = str(value)  # a number of shots
            if not fits(value, hint) and fits([], hint) and isinstance(value, tuple):
                value = list(value)
            if not fits(value, hint):
                raise InputError(f"qpa.{key}={value!r:.100} has the wrong type: give {item.type}.")
            setattr(self, key, value)
        plain = schema.QPAConfig(**vars(self))
        fixed = VARIANTS[self.variant].fixed if self.variant in VARIANTS else {}
        default = schema.QPAConfig()
        if fixed and all(getattr(self, key) == getattr(default, key) for key in fixed):
            raise InputError(
                f"QPAConfig(variant={self.variant!r}) alone is tuned under another name: write "
                f"QPAConfig.{self.variant}(...)."
            )
        check_generator(plain)

    def __eq__(self, other: object) -> bool:
        """Whether every field is the same; a run's config is made of the same fields."""
        return isinstance(other, schema.QPAConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def paper(cls, n_mlp: int = 2048, **changed: Any) -> QPAConfig:
        """Return the paper's equations, as ``qpa=paper``.

        Args:
            n_mlp: parameters of a chunk; the paper takes 2,048 for GPT-2, and 8,192 for Gemma.
            changed: any field that does not define the variant.
        """
        return cls(**{**VARIANTS["paper"].fixed, **changed}, variant="paper", n_mlp=n_mlp)

    @classmethod
    def released(cls, n_mlp: int = 2048, **changed: Any) -> QPAConfig:
        """Return what the authors' code computes, as ``qpa=released``; see :meth:`paper`."""
        return cls(**{**VARIANTS["released"].fixed, **changed}, variant="released", n_mlp=n_mlp)

    @classmethod
    def tuned(cls, **changed: Any) -> QPAConfig:
        """Ours, as ``qpa=tuned``: ``QPAConfig()`` by its name."""
        return cls(**changed)
