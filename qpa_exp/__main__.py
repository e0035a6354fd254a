"""``python -m qpa_exp``: train and test a run, or continue one with ``resume=<directory>``.

Takes Hydra's overrides and flags: ``qpa.n_mlp=128``, ``-m`` for a sweep (``-m sweep=fig2`` for one
of ``sweeps/``), ``--cfg job`` to see the config, ``--help``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra

from qpa_exp.cli import compose_config, conf_dir, register_schema, run_command
from qpa_exp.errors import InputError
from qpa_exp.sweeps.studies import name_scales


def main(arguments: list[str]) -> None:
    """Run what the command line describes."""
    flags = any(argument.startswith("-") for argument in arguments)
    if not flags:
        # Before Hydra makes a directory for the run, and before torch is imported.
        refuse_sweeps(arguments)
        config = compose_config(arguments)
        if config.resume is not None:
            continue_run(config.resume, arguments)
            return
    run_hydra(arguments)


def run_hydra(arguments: list[str]) -> None:
    """Let Hydra run or sweep, as it would from a shell with these arguments."""
    from qpa_exp.sweeps.jobs import refused, task

    arguments = name_scales(arguments)
    register_schema()
    # Hydra then hands its errors over instead of printing them in its own way.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    given, sys.argv = sys.argv, [sys.argv[0], *arguments]  # where Hydra looks
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = given
    if refused:
        raise refused.pop()


def refuse_sweeps(arguments: list[str]) -> None:
    """A study is many runs: it needs Hydra's ``-m``."""
    for argument in arguments:
        if argument.startswith(("sweep=", "scale=")):
            raise InputError(
                f"{argument} is about many runs: python -m qpa_exp -m {' '.join(arguments)}"
            )


def continue_run(directory: str, arguments: list[str]) -> None:
    """Continue a run as it was configured."""
    import logging

    from qpa_exp.runs.train import resume

    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if others:
        raise InputError(
            f"resume continues a run as it was configured: leave out {' '.join(others)}, "
            "or start a new run with it."
        )
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    resume(Path(directory))


if __name__ == "__main__":
    run_command(main)
