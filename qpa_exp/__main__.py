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

import argparse
import contextlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf, read_write

from qpa_exp.adapters.catalogue import METHODS
from qpa_exp.cli import (
    as_text,
    as_typed,
    check_key,
    compose_whole,
    conf_dir,
    hydra_of,
    known_keys,
    plain_text,
    refuse_foreign_code,
    refuse_interpolations,
    refuse_several,
    refuse_ways_out,
    register_schema,
    run_command,
    to_config,
    with_values,
)
from qpa_exp.errors import InputError
from qpa_exp.files import tidied, typed_path

MULTIRUN = {"-m", "--multirun"}
RESUME = "resume="
PLACES = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweeper.records=")


def main(arguments: list[str]) -> None:
    """Run what the command line describes."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    resumed = [argument for argument in arguments if argument.startswith(RESUME)]
    if not flags and resumed and resumed[-1] != f"{RESUME}null":
        continue_run(arguments)
        return
    if not flags:
        refuse_sweeps(arguments)
        start_run(arguments)
    elif flags <= MULTIRUN:
        run_sweep([argument for argument in arguments if argument not in flags])
    else:  # one of Hydra's own, which reads the shell's arguments itself
        import hydra

        given = refuse_foreign_code(arguments)
        refuse_interpolations(arguments)
        if only_of_configs(given):
            refuse_sweeps(given.overrides)
            start_run(given.overrides, given.config_name or "config", given.config_dir)
            return
        if not flags & MULTIRUN:
            for override in given.overrides:
                check_key(override)
            refuse_several(given.overrides)
        refuse_ways_out(given.overrides)
        register_schema()
        name, refused = "multirun" if flags & MULTIRUN else "config", []
        os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises what it refuses, and prints nothing

        def task(composed: DictConfig) -> None:
            refused.append(one_run(composed))

        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(task)()
        except ValueError as error:
            if isinstance(error, InputError) or "--" not in str(error):
                raise
            # Two flags that do not go together.
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


def only_of_configs(given: argparse.Namespace) -> bool:
    """Whether Hydra's flags say nothing but which configs a run is made of."""
    others = (given.cfg, given.info, given.multirun, given.hydra_help, given.shell_completion)
    return not any(others) and not (given.resolve or given.package or given.config_path)


def start_run(
    arguments: list[str], config_name: str = "config", config_dir: str | None = None
) -> None:
    """Begin a new run. Whatever can be refused is, before Hydra makes the run's directory.

    A job of SLURM that has been started again goes on with the run that it began.
    """
    placed = [place_as_typed(argument) for argument in arguments]
    config, composed = compose_whole(placed, config_name, config_dir)
    run_dir = Path(composed.hydra.run.dir)
    given = any(argument.lstrip("+").startswith("hydra.run.dir=") for argument in arguments)
    by_time = not given and "${now:" in OmegaConf.to_container(composed.hydra.run)["dir"]  # type: ignore[index,call-overload]
    _log_to(sys.stdout)
    os.environ.update({name: str(value) for name, value in composed.hydra.job.env_set.items()})
    from qpa_exp.runs import directory
    from qpa_exp.runs.train import begin, prepare, resume

    if (begun := directory.begun_by_this_job(run_dir, config)) is not None:
        resume(begun)
        return
    # The processes of a run on several devices must agree on its directory.
    alone = by_time and config.trainer.devices == 1
    with own_directory(run_dir) if alone else tidied(run_dir) as own:
        run_dir = own or run_dir
        prepared = prepare(config, run_dir)
        # The time in the directory's name stays the one that was checked.
        with read_write(composed.hydra):
            composed.hydra.run.dir = str(run_dir)
        refusal = _as_hydras_job(composed, lambda: begin(prepared))
    if refusal is not None:
        raise refusal


@contextlib.contextmanager
def own_directory(run_dir: Path) -> Iterator[Path]:
    """Make a directory that no other process has: this one, or else ``<this one>-2``, ``-3``, ...

    Jobs that a cluster starts together would have one name. What is empty at the end goes again.
    """
    with tidied(run_dir.parent):
        own = run_dir
        with contextlib.suppress(OSError):  # the check of the place says it in a sentence
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            for n in itertools.count(2):
                with contextlib.suppress(FileExistsError):
                    own.mkdir()
                    break
                own = run_dir.with_name(f"{run_dir.name}-{n}")
        try:
            yield own
        finally:
            with contextlib.suppress(OSError):  # it holds the run
                own.rmdir()


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
    """Return an override that names a directory with the path as it was typed; ``~`` is the home.

    Quotes around it are Hydra's.
    """
    key, _, path = argument.partition("=")
    if f"{key}=" not in PLACES:
        return argument
    if not path.strip():
        raise InputError(f"{argument} names no directory: give one.")
    if unquoted(path) != path:
        return argument
    return f"{key}={as_text(str(typed_path(path)))}"


def unquoted(text: str) -> str:
    """Return a text without the quotes that Hydra's grammar may have around it."""
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] else text


def one_run(composed: DictConfig) -> Exception | None:
    """Make the single run for which Hydra calls this, where a flag of Hydra's own was given."""
    from hydra.core.hydra_config import HydraConfig

    from qpa_exp.runs.train import run

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return refusal_of(lambda: run(to_config(composed), run_dir))


def refusal_of(make: Callable[[], Any]) -> Exception | None:
    """Return the refusal, if any: if it were raised, Hydra would print a line about it.

    Paths are relative to where the command was typed, under ``hydra.job.chdir=true``, too.
    """
    from hydra.core.hydra_config import HydraConfig

    try:
        with contextlib.chdir(HydraConfig.get().runtime.cwd):
            make()
    except Exception as error:
        return error
    return None


def run_sweep(arguments: list[str]) -> None:
    """Let Hydra sweep, as ``python -m qpa_exp -m`` would with these arguments."""
    from qpa_exp.sweeps.studies import name_scales
    from qpa_exp.sweeps.worker import work

    arguments = as_typed([place_as_typed(argument) for argument in arguments])
    if any(re.match("hydra/sweeper=(?!study$)", argument) for argument in arguments):
        for argument in arguments:
            if re.match("(sweep=(?!null$)|scale=(?!none$))", argument):
                raise InputError(f"{argument} needs hydra/sweeper=study: other sweepers have none.")
        arguments = [*arguments, "scale=none"]
    refuse_interpolations(arguments)
    refuse_ways_out(arguments)
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

    run_dir = typed_path(unquoted(path))
    resume(run_dir, with_values(read_config(run_dir), others) if others else None)


def _log_to(stream: TextIO) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=stream)


if __name__ == "__main__":
    run_command(main, help_page)
