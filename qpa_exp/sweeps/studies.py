"""What a study is: the schema of ``hydra.sweeper``, which the files of ``sweeps/`` fill in.

A sweep is its ``parts``, each a product: a mapping from a config key or group to one value or a
list of them. The parts run one after another; ``fixed`` and the command line hold for all. Values
that depend on the size of the experiment stand in ``sweeps/scale/`` and are referred to, as in
``qpa.n_mlp: ${hydra.sweeper.scale.n_mlp}``.

Imported whenever Hydra starts, so it must stay light.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf


class Work(StrEnum):
    """What each run of a study does with its config."""

    train = "train"
    gradient_variance = "gradient_variance"


@dataclass
class SearchConfig:
    """A search by Optuna in place of a product: what is minimised together, over which space."""

    n_trials: int = 20
    batch_size: int = 1
    """Trials that are chosen before any of them has ended; the launcher may run them at once."""
    space: dict[str, list[Any]] = field(default_factory=dict)
    """For each config key the values to choose from."""
    seed: int = 0


@dataclass
class StudyConfig:
    """``hydra.sweeper``: what runs, where it is recorded, and how it is reported."""

    _target_: str = "hydra_plugins.qpa_exp_sweeper.StudySweeper"
    study: str | None = None
    """The study's name, that of its file; null for a sweep from the command line alone."""
    title: str = ""
    paper: str = ""
    """What the paper shows there; empty for a study of our own."""
    parts: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    fixed: dict[str, Any] = field(default_factory=dict)
    scale: dict[str, Any] = field(default_factory=dict)
    """Of ``sweeps/scale/``: ``name``, and the values that the parts refer to."""
    paper_scales: list[str] = field(default_factory=lambda: ["gpt2", "gemma"])
    """The scales at which the paper has this study."""
    work: Work = Work.train
    search: SearchConfig | None = None
    record: str = "outputs/studies/${hydra.sweeper.scale.name}/${hydra.sweeper.study}"
    """Where a named study keeps the list of its runs, and its report."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of this study should know, in sentences."""
    differs: list[str] = field(default_factory=list)
    """How the setting differs from the paper's, in sentences."""
    only_plan: bool = False
    """Say what would run and what it would cost, then stop."""


def sweeps_dir() -> Path:
    """The files of the studies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "studies"
    return installed if installed.is_dir() else package.parent / "sweeps"


def study_names() -> list[str]:
    """Every study that has a file, in alphabetical order."""
    return sorted(file.stem for file in sweeps_dir().glob("*.yaml"))


def scale_names() -> list[str]:
    """Every scale that has a file, in alphabetical order."""
    return sorted(file.stem for file in (sweeps_dir() / "scale").glob("*.yaml"))


def name_scales(arguments: list[str]) -> list[str]:
    """``sweep=fig2_gpt2``, short for a study at a scale, written out: ``sweep=fig2 scale=gpt2``."""
    both = {
        f"sweep={study}_{scale}": [f"sweep={study}", f"scale={scale}"]
        for study in study_names()
        for scale in scale_names()
    }
    return [word for argument in arguments for word in both.get(argument, [argument])]


def register_studies() -> None:
    """Make the sweeper and every file of ``sweeps/`` known to Hydra.

    The group is called ``sweep`` and the folder ``sweeps``, so that Hydra cannot find it by path.
    """
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="study", node=StudyConfig, provider="qpa_exp")
    _store("scale", "none", OmegaConf.create())  # for hydra/sweeper=basic, which has no studies
    for file in sorted((sweeps_dir() / "scale").glob("*.yaml")):
        _store("scale", file.stem, OmegaConf.load(file))
    for file in sorted(sweeps_dir().glob("*.yaml")):
        node = OmegaConf.load(file)
        _store("sweep", file.stem, node)
        for scale in paper_scales(node):  # sweep=fig2_gpt2 is sweep=fig2 scale=gpt2
            _store("sweep", f"{file.stem}_{scale}", _at_scale(file.stem, scale), "_global_")


def paper_scales(study: Any) -> list[str]:
    """The scales at which the paper has the study of this file."""
    return list(study.get("paper_scales", StudyConfig().paper_scales))


def _at_scale(study: str, scale: str) -> Any:
    return OmegaConf.create({"defaults": [study, {"override /scale": scale}]})


def _store(group: str, name: str, node: Any, package: str = "hydra.sweeper") -> None:
    ConfigStore.instance().store(
        group=group, name=name, node=node, package=package, provider="qpa_exp"
    )
