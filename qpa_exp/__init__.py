"""Quantum Parameter Adaptation: a small quantum circuit generates the weights of a PEFT method."""

from __future__ import annotations

import os
import sys

# So Python calls a command, python -m qpa_exp.plan, while it looks for the command's module. It
# puts the working directory first: a yaml.py in a run's directory would be taken for the library.
# Before any other import, and for the processes that the command starts, too.
_IS_COMMAND = sys.argv[:1] == ["-m"]
if _IS_COMMAND and not sys.flags.safe_path:
    _root = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    if os.path.realpath(sys.path[0]) != _root:
        del sys.path[0]
        os.environ["PYTHONSAFEPATH"] = "1"

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpa_exp.adapters.generated import QPALoraConfig
    from qpa_exp.adapters.qpa_model import QPAModel, get_qpa_model
    from qpa_exp.errors import InputError
    from qpa_exp.python_config import QPAConfig

__version__ = "0.1.0"

# PEFT imports bitsandbytes where it is installed, which then remarks on kernels it would like.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# A thread of torch's that waits for work spins, and by default for so long that the threads of the
# compiled loops find their core taken. GNU OpenMP reads this once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if _IS_COMMAND:
    from qpa_exp.runs import signals

    signals.install(signals.AtOnce())
    if find_spec("hydra") is None:
        print("error: the commands need: pip install 'qpa-exp[experiments]'", file=sys.stderr)
        sys.exit(2)

_HOMES = {
    "QPAConfig": "qpa_exp.python_config",
    "QPALoraConfig": "qpa_exp.adapters.generated",
    "QPAModel": "qpa_exp.adapters.qpa_model",
    "get_qpa_model": "qpa_exp.adapters.qpa_model",
    "InputError": "qpa_exp.errors",
}
__all__ = ["InputError", "QPAConfig", "QPALoraConfig", "QPAModel", "get_qpa_model"]


def __dir__() -> list[str]:
    """List what ``dir(qpa_exp)`` and ``help(qpa_exp)`` show: the public names, imported or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: commands that need no model stay quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
