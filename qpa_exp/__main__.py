"""``qpa-exp train``: train and test a run, or continue one. The same: ``python -m qpa_exp``.

Takes Hydra's overrides and flags; a key that is left out keeps its default.

Examples:
  qpa-exp train                                    the default: bundled model and text
  qpa-exp train qpa.n_mlp=128 peft.r=2             another generator, another rank
  qpa-exp train qpa=off                            LoRA itself, for comparison
  qpa-exp train peft.target_modules=all-linear     every linear layer but the head
  qpa-exp train data=text data.path=<file>         your own text
  qpa-exp train resume=<run>                       go on with the run in this directory
  qpa-exp train -m qpa.n_mlp=32,64                 a sweep; -m sweep=fig2 for one of sweeps/
  qpa-exp train --cfg job                          show the config; --hydra-help: more of Hydra's
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from omegaconf import DictConfig, read_write

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.cli import (
    as_typed,
    check_key,
    compose_whole,
    conf_dir,
    hydra_of,
    known_keys,
    plain_text,
    quoted,
    refuse_foreign_code,
    refuse_interpolations,
    refuse_several,
    register_schema,
    run_command,
    to_config,
    with_values,
)
from qpa_exp.errors import InputError
from qpa_exp.files import tidied, typed_path

MULTIRUN = {"-m", "--multirun"}
RUN_DIR, RESUME = "hydra.run.dir=", "resume="


def main(arguments: list[str]) -> None:
    """Run what the command line describes."""
    arguments = as_typed([place_as_typed(argument) for argument in arguments])
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags:
        refuse_sweeps(arguments)
        if any(a.startswith(RESUME) and a != f"{RESUME}null" for a in arguments):
            continue_run(arguments)
        else:
            start_run(arguments)
    elif flags & {"-h", "--help"}:
        print(help_page(), end="")
    elif flags <= MULTIRUN:
        run_sweep([argument for argument in arguments if argument not in flags])
    else:  # one of Hydra's own, which reads the shell's arguments itself
        import hydra

        overrides = refuse_foreign_code(arguments)
        refuse_interpolations(arguments)
        if not flags & MULTIRUN:
            for override in overrides:
                check_key(override)
            refuse_several(overrides)
        register_schema()
        name, refused = "multirun" if flags & MULTIRUN else "config", []
        os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises what it refuses, and prints nothing

        def task(composed: DictConfig) -> None:
            refused.append(one_run(composed))

        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(task)()
        except ValueError as error:  # two flags that do not go together
            raise InputError(f"{' '.join(arguments)}: {error}.") from error
        for refusal in filter(None, refused):
            raise refusal


def help_page() -> str:
    """Return what the command takes: this file's own words, and every group with its options.

    Hydra would compose a config for its page, which takes two seconds.
    """
    options: dict[str, set[str]] = {"peft": set(METHODS)}
    for file in conf_dir().glob("*/*.yaml"):
        if not file.stem.startswith("_"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    lines = [f"  {group}={' | '.join(sorted(names))}" for group, names in sorted(options.items())]
    groups = "\n".join(
        fill(line, 100, subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )
    keys = fill(", ".join(known_keys()), 100, initial_indent="  ", subsequent_indent="  ")
    return f"{plain_text(__doc__)}\nGroups and their options:\n{groups}\n\nKeys:\n{keys}\n"


def start_run(arguments: list[str]) -> None:
    """Begin a new run. Whatever can be refused is, before Hydra makes the run's directory.

    A job of SLURM that has been started again goes on with the run that it began.
    """
    config, composed = compose_whole(arguments)
    run_dir = Path(composed.hydra.run.dir)
    if composed.hydra.job.chdir:
        run_dir = run_dir.absolute()
    _log_to(sys.stdout)
    from qpa_exp.runs import directory
    from qpa_exp.runs.train import begin, prepare, resume

    if (begun := directory.begun_by_this_job(run_dir, config)) is not None:
        resume(begun)
        return
    prepared = prepare(config, run_dir)
    # The time in the directory's name stays the one that was checked.
    with read_write(composed.hydra):
        composed.hydra.run.dir = str(run_dir)
    with tidied(run_dir):
        refusal = _as_hydras_job(composed, lambda: begin(prepared))
    if refusal is not None:
        raise refusal


def _as_hydras_job(composed: DictConfig, make: Callable[[], Any]) -> Exception | None:
    """Do this as ``Hydra.run`` does a job that it composes itself: logging, callbacks, environment.

    Returns:
        The refusal, if any.
    """
    from hydra._internal.callbacks import Callbacks  # no public way calls them
    from hydra.core.utils import run_job
    from hydra.types import HydraContext

    callbacks = Callbacks(composed)
    with hydra_of(conf_dir()) as started:
        callbacks.on_run_start(config=composed, config_name="config")
        done = run_job(
            task_function=lambda _: refusal_of(make),
            config=composed,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(started.config_loader, callbacks),
        )
        callbacks.on_run_end(config=composed, config_name="config", job_return=done)
    return done.return_value


def place_as_typed(argument: str) -> str:
    """Return an override of the run's directory with the path as it was typed; ``~`` is the home.

    Quotes around it are Hydra's.
    """
    if not argument.startswith(RUN_DIR):
        return argument
    path = argument.removeprefix(RUN_DIR)
    if not path.strip():
        raise InputError(f"{argument} names no directory: give one.")
    if len(path) > 1 and path[0] in "'\"" and path[-1] == path[0]:
        return argument
    return f"{RUN_DIR}{quoted(str(typed_path(path)))}"


def one_run(composed: DictConfig) -> Exception | None:
    """Make the single run for which Hydra calls this, where a flag of Hydra's own was given."""
    from hydra.core.hydra_config import HydraConfig

    from qpa_exp.runs.train import run

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return refusal_of(lambda: run(to_config(composed), run_dir))


def refusal_of(make: Callable[[], Any]) -> Exception | None:
    """Return the refusal, if any: if it were raised, Hydra would print a line about it."""
    try:
        make()
    except Exception as error:
        return error
    return None


def run_sweep(arguments: list[str]) -> None:
    """Let Hydra sweep, as ``python -m qpa_exp -m`` would with these arguments."""
    from qpa_exp.sweeps.studies import name_scales
    from qpa_exp.sweeps.worker import work

    arguments = as_typed(arguments)
    refuse_interpolations(arguments)
    with hydra_of(conf_dir()) as started:
        started.multirun("multirun", work, name_scales(arguments))


def refuse_sweeps(arguments: list[str]) -> None:
    """Refuse a study, which is many runs: it needs Hydra's ``-m``."""
    for argument in arguments:
        if argument.startswith(("sweep=", "scale=")):
            raise InputError(
                f"{argument} is about many runs: python -m qpa_exp -m {' '.join(arguments)}"
            )


def continue_run(arguments: list[str]) -> None:
    """Continue a run, as it was configured or for longer."""
    others = [argument for argument in arguments if not argument.startswith(RESUME)]
    given = [argument for argument in arguments if argument.startswith(RESUME)]
    path = given[-1].removeprefix(RESUME)
    if not path.strip():
        raise InputError(f"{given[-1]} names no directory: give that of a run.")
    _log_to(sys.stderr)
    from qpa_exp.runs.directory import read_config
    from qpa_exp.runs.train import resume

    run_dir = typed_path(path)
    resume(run_dir, with_values(read_config(run_dir), others) if others else None)


def _log_to(stream: TextIO) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=stream)


if __name__ == "__main__":
    run_command(main, help_page)
