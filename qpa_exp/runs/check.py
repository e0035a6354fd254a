"""What a config must hold before anything is loaded: ranges, names, and no key without effect."""

from __future__ import annotations

from typing import Any

from qpa_exp.config import Config, validate
from qpa_exp.data.corpus import CORPORA
from qpa_exp.errors import InputError
from qpa_exp.registry import Registry, read_key, refuse_unread
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.optimizers import OPTIMIZERS
from qpa_exp.task import TASKS

REGISTRIES: tuple[Registry[Any], ...] = (TASKS, CORPORA, OPTIMIZERS, LOGGERS)
"""Of every config key that names something."""


def check(config: Config) -> None:
    """Refuse the first value that is out of range, or that names nothing.

    Raises:
        InputError: one sentence with the key, its value and what would be right.
    """
    validate(config)
    for registry in REGISTRIES:
        _ = registry[read_key(config, registry.key)]
    CORPORA[config.data.name].check(config.data)
    TASKS[config.task].check(config)
    if OPTIMIZERS[config.optim.name].search is not None and config.trainer.devices > 1:
        raise InputError(
            f"optim={config.optim.name} searches in one process: give trainer.devices=1, not "
            f"{config.trainer.devices}."
        )


def check_new(config: Config) -> None:
    """:func:`check`, and refuse a key that was set and has no effect.

    For what a person typed. A config that was saved may hold such keys: they change nothing.
    """
    check(config)
    refuse_unread(config, REGISTRIES)
