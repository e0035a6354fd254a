"""The command ``qpa-exp``, which ``pip install`` puts beside Python.

``qpa-exp plan model=gpt2`` is ``python -m qpa_exp.plan model=gpt2``, and so for every other: the
same process, the same refusals, the same exit status. ``qpa-exp train``, or overrides alone, is
``python -m qpa_exp``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qpa_exp import __version__
from qpa_exp.errors import InputError, nearest

COMMANDS = {
    "train": "train and test a run, continue one with resume=, or sweep with -m",
    "plan": "count what a run would train, without weights and without network",
    "score": "measure the perplexity of a language model as it is",
    "generate": "write text with a trained run, beside its base model",
    "export": "turn a run into an adapter, a merged model or a generator file",
    "report": "draw figures and write tables of runs",
    "reproduce": "run studies and report them",
    "benchmark": "measure circuits, training steps and memory",
    "dashboard": "make a W&B workspace with the paper's panels",
}
"""Every command, and what it does."""

_HELP = """\
qpa-exp {version}: fine-tune a language model by training a small quantum circuit.

usage: qpa-exp <command> [key=value ...]
       qpa-exp [key=value ...]              the same as qpa-exp train

Commands:
{commands}

Examples:
  qpa-exp train                             the default: the bundled model and text
  qpa-exp qpa.n_mlp=128 peft.r=2            with other values
  qpa-exp plan model=gpt2 qpa=paper         what it would train
  qpa-exp export run=<run> out=adapter      <run> is a run's directory under outputs/
  qpa-exp plan --help                       what a command takes

Each command is also python -m qpa_exp.<command>, and train is python -m qpa_exp.
Completion by the shell: eval "$(qpa-exp -sc install=bash)", or qpa-exp -sc install=fish | source.
"""


def main() -> None:
    """Become the command that the arguments name."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
        print(_HELP.format(version=__version__, commands="\n".join(lines)), end="")
    elif arguments == ["--version"]:
        print(f"qpa_exp {__version__}")
    else:
        try:
            command = program(arguments)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        # -P: nothing is imported out of the working directory.
        os.execv(sys.executable, [sys.executable, "-P", *command])


def module_of(command: str) -> str:
    """Return the module that ``python -m`` starts for this command."""
    return "qpa_exp" if command == "train" else f"qpa_exp.{command}"


def program(arguments: Sequence[str]) -> list[str]:
    """Return what Python is started with.

    Raises:
        InputError: there is no such command.

    Examples:
        >>> program(["plan", "model=gpt2"])
        ['-m', 'qpa_exp.plan', 'model=gpt2']
        >>> program(["qpa.n_mlp=128"])
        ['-m', 'qpa_exp', 'qpa.n_mlp=128']
    """
    name, *rest = arguments
    if name.startswith(("-sc", "--shell-completion")):
        return ["-m", "qpa_exp.completion", *arguments]
    if name in COMMANDS:
        return ["-m", module_of(name), *rest]
    if "=" not in name and not name.startswith(("-", "~")):
        near = nearest(name, COMMANDS) or COMMANDS
        raise InputError(f"{name} is no command of qpa-exp: did you mean {' or '.join(near)}?")
    return ["-m", "qpa_exp", *arguments]
