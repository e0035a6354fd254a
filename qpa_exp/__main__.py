"""``python -m qpa_exp``: train and test a run, or continue one with ``resume=<directory>``.

Takes Hydra's overrides and flags: ``qpa.n_mlp=128``, ``-m`` for a sweep (``-m sweep=fig2`` for one
of ``sweeps/``), ``--cfg job`` to see the config, ``--hydra-help`` for the rest of Hydra's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from omegaconf import DictConfig

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.cli import (
    as_typed,
    compose_config,
    conf_dir,
    known_keys,
    refuse_interpolations,
    register_schema,
    run_command,
    to_config,
)
from qpa_exp.errors import InputError

MULTIRUN = {"-m", "--multirun"}


def main(arguments: list[str]) -> None:
    """Run what the command line describes."""
    arguments = as_typed(arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags:
        # Before Hydra makes a directory for the run, and before torch is imported.
        refuse_sweeps(arguments)
        config = compose_config(arguments)
        if config.resume is not None:
            continue_run(config.resume, arguments)
            return
        with hydra_of(conf_dir()) as started:
            refusal = started.run("config", one_run, arguments).return_value
        if refusal is not None:
            raise refusal
    elif flags & {"-h", "--help"}:
        print(help_page(), end="")
    elif flags <= MULTIRUN:
        run_sweep([argument for argument in arguments if argument not in flags])
    else:  # one of Hydra's own, which reads the shell's arguments itself
        import hydra

        refuse_interpolations(arguments)
        register_schema()
        name = "multirun" if flags & MULTIRUN else "config"
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(one_run)()


def help_page() -> str:
    """What the command takes: this file's own words, and every group with its options.

    Hydra would compose a config for its page, which takes two seconds.
    """
    options: dict[str, set[str]] = {"peft": set(METHODS)}
    for file in conf_dir().glob("*/*.yaml"):
        if not file.stem.startswith("_"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    lines = [f"  {group}={'|'.join(sorted(names))}" for group, names in sorted(options.items())]
    groups = "\n".join(
        fill(line, 100, subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )
    keys = fill(", ".join(known_keys()), 100, initial_indent="  ", subsequent_indent="  ")
    return f"{__doc__}\nGroups and their options:\n{groups}\n\nKeys:\n{keys}\n"


def one_run(composed: DictConfig) -> Exception | None:
    """What Hydra calls for a single run.

    Returns:
        What went wrong: if it were raised, Hydra would print a line of its own about it.
    """
    from hydra.core.hydra_config import HydraConfig

    from qpa_exp.runs.directory import discard

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = to_config(composed)
        from qpa_exp.runs.train import run

        run(config, run_dir)
    except Exception as error:
        return error
    finally:
        discard(run_dir)
    return None


def run_sweep(arguments: list[str]) -> None:
    """Let Hydra sweep, as ``python -m qpa_exp -m`` would with these arguments."""
    from qpa_exp.sweeps.studies import name_scales
    from qpa_exp.sweeps.worker import work

    arguments = as_typed(arguments)
    refuse_interpolations(arguments)
    with hydra_of(conf_dir()) as started:
        started.multirun("multirun", work, name_scales(arguments))


@contextlib.contextmanager
def hydra_of(directory: Path) -> Iterator[Any]:
    """Hydra with this config tree: ``hydra.main`` takes its arguments from the shell alone."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base="1.3", job_name="qpa_exp"):
        yield GlobalHydra.instance().hydra


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
