"""YAML that somebody else may have written, as plain data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import check_plain, read_bytes

MOST_BYTES = 2**17
"""Above any config, and read in a second or two."""


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
_DEEPEST = 50
"""Tables and lists within one another: above any config."""


class _Loader(_Base):
    """No key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError("it has a key twice")
        return found


class _HydrasLoader(_Loader):
    """Takes ``1e-3`` for a number, as in Hydra's files; what we write never is spelt so."""


_HydrasLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+$", re.IGNORECASE),
    list("-+.0123456789"),
)


def _check_events(text: bytes) -> None:
    """Refuse anchors, by which a short text may stand for an endless one, and too deep a text."""
    depth = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("it has an anchor or an alias, which nothing here may have")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError("it is too deep")


def read_yaml(path: Path, *, references: bool = False) -> dict[str, Any]:
    """Return a table of texts, numbers, truth values, lists and tables.

    Nothing in it refers to anything.

    Args:
        path: an ordinary file of at most 128 KiB.
        references: it is for Hydra: texts may refer to something, and are not followed.

    Raises:
        InputError: one sentence with the path: it cannot be read, or holds anything else.
    """
    try:
        text = read_bytes(path, MOST_BYTES)
        _check_events(text)
        found = yaml.load(text, _HydrasLoader if references else _Loader)
        check_plain(found, references)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        why = f"line {mark.line + 1}: {error.problem}" if mark else first_line(error)  # type: ignore[union-attr]
        raise InputError(f"{path} cannot be used: {why.rstrip('.')}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be used: it is no table of keys and values.")
    return found
