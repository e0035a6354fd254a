"""A run's name follows from its content: the same name is the same run.

It is a hash of the resolved config, the text that the run reads, and the code that computes it, so
that a run that is complete need not be made again, and never stands for another one.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from qpa_exp.config import Config, DataConfig
from qpa_exp.sweeps.studies import Work

_LENGTH = 12
_PACKAGE = Path(__file__).resolve().parent.parent
_ROOMS = ("circuits", "generator", "adapters", "lm", "data", "fast_head", "tasks", "runs")
_WITHOUT_EFFECT = {"logger": None, "resume": None}
"""Keys under which a run computes the same numbers."""


def run_name(config: Config, work: Work, *, reads_text: bool = True) -> str:
    """``<method>-<variant>-<hash>``: the directory of this run.

    A model directory of the user's own enters by its path and the names and sizes of its files.
    Without ``reads_text`` the name tells runs of one sweep apart, and is no run's directory.

    Raises:
        InputError: the corpus cannot be read.
    """
    content = {
        "config": relevant(config),
        "work": work.value,
        "data": data_sha256(config.data) if reads_text else None,
        "model": _model_files(config.model.name_or_path),
        "code": code_sha256(),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{config.peft.method}-{config.qpa.variant}-{digest[:_LENGTH]}"


def data_sha256(config: DataConfig) -> str:
    """The hash of the text that this config reads, as ``metrics.json`` records it."""
    splits = (config.train_split, config.validation_split, config.test_split)
    return _data_sha256(config.name, config.path, *splits)


@functools.cache
def _data_sha256(name: str, path: str | None, *splits: str) -> str:
    from qpa_exp.data.corpus import load_corpus

    train, validation, test = splits
    config = DataConfig(
        name=name, path=path, layout="blocks",
        train_split=train, validation_split=validation, test_split=test,
    )  # fmt: skip
    return load_corpus(config).sha256


@functools.cache
def code_sha256() -> str:
    """The hash of the code that results come from: comments and docstrings do not count.

    The rooms of the package up to ``training``, and the bundled model's files. Libraries are not
    part of it; a report names their versions.
    """
    digest = hashlib.sha256()
    files = [
        _PACKAGE / "config.py",
        *(f for room in _ROOMS for f in (_PACKAGE / room).rglob("*.py")),
    ]
    for file in sorted(files):
        digest.update(str(file.relative_to(_PACKAGE)).encode())
        digest.update(_code_of(file).encode())
    for file in sorted((_PACKAGE / "lm" / "tiny").glob("*")):
        if file.suffix != ".md":
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _code_of(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def relevant(config: Config) -> dict[str, Any]:
    """The config without what has no effect on the numbers."""
    values = dataclasses.asdict(config) | _WITHOUT_EFFECT
    values["trainer"] = values["trainer"] | {"progress_bar": None}
    # The recipe's values are in the keys that refer to it.
    values["model"] = values["model"] | {"recipe": None}
    # The text itself is in the hash; where and how much is cached does not change it.
    values["data"] = values["data"] | dict.fromkeys(("path", "cache_dir", "cache_gib"))
    if config.qpa.variant == "off":
        values["qpa"] = {"variant": "off", "seed": config.qpa.seed}
    return values


def _model_files(name_or_path: str) -> list[tuple[str, int]]:
    directory = Path(name_or_path).expanduser()
    if not directory.is_dir():
        return []
    files = sorted(file for file in directory.iterdir() if file.is_file())
    return [(file.name, file.stat().st_size) for file in files]
