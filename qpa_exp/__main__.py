"""``python -m qpa_exp``: train and test a run, or continue one with ``resume=<directory>``.

Takes Hydra's overrides and flags: ``qpa.n_mlp=128``, ``-m`` for a sweep, ``--cfg job`` to see the
config, ``--help``.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qpa_exp.cli import compose_config, conf_dir, register_schema, run_command, to_config
from qpa_exp.errors import InputError

_refused: list[InputError] = []


def task(composed: DictConfig) -> float | None:
    """One run of Hydra's; returns the test perplexity, for sweepers that minimise it."""
    from qpa_exp.training.directory import discard
    from qpa_exp.training.run import run

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        perplexity: float | None = run(to_config(composed), run_dir)["perplexity"]
    except InputError as error:
        if HydraConfig.get().mode != RunMode.RUN:
            raise
        _refused.append(error)  # raised after Hydra, which would print a line of its own
        return None
    finally:
        discard(run_dir)
    return perplexity


def main(arguments: list[str]) -> None:
    """Run what the command line describes."""
    flags = any(argument.startswith("-") for argument in arguments)
    if not flags:
        # Before Hydra makes a directory for the run, and before torch is imported.
        config = compose_config(arguments)
        if config.resume is not None:
            continue_run(config.resume, arguments)
            return
    register_schema()
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    if _refused:
        raise _refused.pop()


def continue_run(directory: str, arguments: list[str]) -> None:
    """Continue a run as it was configured."""
    import logging

    from qpa_exp.training.run import resume

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
