"""What a config must hold before anything is loaded: ranges, names, and no key without effect."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.adapters.counts import Counts, plan_counts
from qpa_exp.config import Config, validate
from qpa_exp.data.corpus import CORPORA, LAYOUTS
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import REGISTRIES as OF_THE_GENERATOR
from qpa_exp.generator.rules import check_generator
from qpa_exp.registry import Registry, read_key, refuse_unread
from qpa_exp.runs.loggers import LOGGERS
from qpa_exp.runs.optimizers import OPTIMIZERS
from qpa_exp.task import TASKS

REGISTRIES: tuple[Registry[Any], ...] = (
    TASKS, METHODS, CORPORA, LAYOUTS, OPTIMIZERS, LOGGERS, *OF_THE_GENERATOR,
)  # fmt: skip
"""The registries of every config key that names something."""


def check(config: Config, *, saved: bool = False) -> None:
    """Refuse the first value that is out of range, or names nothing, or has no effect.

    Args:
        config: of a run.
        saved: was read from a file. There a key without effect is no mistake.

    Raises:
        InputError: one sentence with the key, its value and what would be right.
    """
    validate(config)
    for registry in REGISTRIES:
        _ = registry[read_key(config, registry.key)]
    check_generator(config.qpa, saved=saved)
    CORPORA[config.data.name].check(config.data)
    TASKS[config.task].check(config)
    if OPTIMIZERS[config.optim.name].search is not None and config.trainer.devices > 1:
        raise InputError(
            f"optim={config.optim.name} searches in one process: give trainer.devices=1, not "
            f"{config.trainer.devices}."
        )
    if not saved:
        refuse_unread(config, REGISTRIES)


def check_machine(config: Config) -> None:
    """Refuse what this machine does not have; for a run that is to start here.

    Raises:
        InputError: more processes than cores or GPUs, or a package that is not installed.
    """
    import torch

    trainer, name = config.trainer, config.logger.name
    if trainer.accelerator in ("gpu", "cuda"):
        there, what = torch.cuda.device_count(), "GPUs"
    else:
        there, what = os.cpu_count() or 1, "cores"
    if trainer.devices > there:
        raise InputError(
            f"trainer.devices={trainer.devices} is more than the {there} {what} of this machine."
        )
    for module in LOGGERS[name].needs:
        if find_spec(module) is None:
            raise InputError(f"logger={name} needs {module}: pip install 'qpa-exp[loggers]'.")


def plan(config: Config) -> Counts:
    """Return the sizes of the run that ``config`` describes, from its shapes alone.

    Raises:
        InputError: a target that the model does not have, too many qubits, too long examples.
    """
    task = TASKS[config.task]
    return plan_counts(config, auto_class=task.auto_class, task_type=task.peft_task_type)
