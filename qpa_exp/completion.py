"""What the shell asks ``qpa-exp`` for at a tab: its commands, and for each the keys that it takes.

``eval "$(qpa-exp -sc install=bash)"`` lets bash ask, and so does zsh after its bashcompinit;
``qpa-exp -sc install=fish | source`` is for fish. Hydra has all of it but the commands.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from importlib import import_module

from qpa_exp.cli import run_command
from qpa_exp.errors import InputError
from qpa_exp.script import COMMANDS, module_of

_TAKE_A_CONFIG = ("train", "plan", "score", "reproduce")


def main(arguments: list[str]) -> None:
    """Answer ``-sc install=bash`` and the like, or what a tab asks: ``-sc query=bash``."""
    asked = arguments[-1].removeprefix("-sc").lstrip("=")
    if not re.fullmatch(r"(install|uninstall|query)=\w+", asked):
        raise InputError(f"{' '.join(arguments)} is no completion: give -sc install=bash or fish.")
    if asked.startswith("query="):
        command, line = _split(os.environ.get("COMP_LINE", ""))
        print("\n".join(_own(command, line)))
        if command not in _TAKE_A_CONFIG:
            return
        os.environ["COMP_LINE"] = f"qpa-exp {line}"
    from qpa_exp.__main__ import main as train

    sys.argv = ["qpa-exp", *arguments]  # Hydra asks the program of this name
    train(arguments)


def _split(line: str) -> tuple[str, str]:
    """Give a command line so far: its command, ``train`` where none is named, and what follows."""
    _, _, rest = line.lstrip().partition(" ")
    name, blank, after = rest.lstrip().partition(" ")
    return (name, after) if blank and name in COMMANDS else ("train", rest)


def _own(command: str, line: str) -> list[str]:
    """Return what Hydra does not know: the commands, and the options of each."""
    if command == "train":
        return list(COMMANDS) if re.fullmatch(r"\w*", line) else []
    if command == "benchmark":
        return ["--quick", "--json", "--threads", "--rounds", "--only", "--shapes"]
    module = import_module(module_of(command))
    (options,) = (item for name, item in vars(module).items() if name.endswith("Options"))
    return [f"{item.name}=" for item in dataclasses.fields(options)]


if __name__ == "__main__":
    run_command(main)
