"""YAML that somebody else may have written, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import check_plain, read_bytes

_MOST = 2**17
"""Bytes: above any config, and read in a second or two."""


class _Loader(yaml.SafeLoader):
    """No anchors, by which a short text may stand for an endless one, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("it has an anchor or an alias, which nothing here writes")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError("it has a key twice")
        return found


def read_yaml(path: Path, *, references: bool = False) -> dict[str, Any]:
    """Return a table of texts, numbers, truth values, lists and tables.

    Nothing in it refers to anything.

    Args:
        path: an ordinary file of at most 128 KiB.
        references: texts may refer to something; they are not followed.

    Raises:
        InputError: one sentence with the path: it cannot be read, or holds anything else.
    """
    try:
        found = yaml.load(read_bytes(path, _MOST), _Loader)
        check_plain(found, references)
    except RecursionError as error:
        raise InputError(f"{path} is not one of ours: it is too deep.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not one of ours: {first_line(error).rstrip('.')}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not one of ours: it is no table of keys and values.")
    return found
