"""From the parts of a study and the command line to one list of overrides for each run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from qpa_exp.errors import InputError

Axes = dict[str, list[str]]
"""For each key of the config its values, as an override spells them."""

_PLAIN = re.compile(r"[\w./+-]+")


def expand(
    parts: Sequence[Mapping[str, Any]], fixed: Mapping[str, Any], arguments: Sequence[str]
) -> list[dict[str, str]]:
    """One mapping from key to value for each run, part after part.

    The command line takes the place of what a part or ``fixed`` says about the same key, and a
    part the place of ``fixed``. A run that two parts describe alike appears once.

    Args:
        parts: each a product; a list is an axis, anything else one value.
        fixed: the same, for every part.
        arguments: Hydra overrides; ``key=a,b`` and the like are axes.

    Raises:
        InputError: an override that is no list of values, or takes a key away.
    """
    given = _axes_of(arguments)
    runs: list[dict[str, str]] = []
    for part in parts:
        axes = {key: _values(value) for key, value in {**fixed, **part}.items()} | given
        for values in itertools.product(*axes.values()):
            run = dict(zip(axes, values, strict=True))
            if run not in runs:
                runs.append(run)
    return runs


def as_overrides(run: Mapping[str, str]) -> list[str]:
    """``key=value`` for each entry."""
    return [f"{key}={value}" for key, value in run.items()]


def labels(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """What sets each run apart from the others, seeds left out: the entries that differ."""
    keys = dict.fromkeys(key for run in runs for key in run)
    differing = [
        key
        for key in keys
        if key not in ("seed", "qpa.seed") and len({r.get(key) for r in runs}) > 1
    ]
    return [" ".join(f"{key}={run[key]}" for key in differing if key in run) for run in runs]


def spell(value: Any) -> str:
    """A value as Hydra's grammar for overrides writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spell, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{spell(item)}' for key, item in value.items())}}}"
    text = str(value)
    if isinstance(value, str) and not _PLAIN.fullmatch(text):
        escaped = text.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return text


def _values(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [spell(item) for item in items]


def _axes_of(arguments: Iterable[str]) -> Axes:
    axes: Axes = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        if override.is_delete():
            raise InputError(f"{override.input_line}: nothing can be taken away: give a value.")
        axes[override.get_key_element()] = values_of(override)
    return axes


def values_of(override: Override) -> list[str]:
    """Every value that an override lists, as it is spelled there.

    Raises:
        InputError: it is an interval, or the like.
    """
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line} gives no list of values: write {override.key_or_group}=a,b,c, "
            "or choice(...) or range(...)."
        )
    return [str(value) for value in override.sweep_string_iterator()]
