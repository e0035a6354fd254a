"""What a config key may name: the entries of one room, and which other keys each of them reads.

A room owns its names. An entry is a file in the room's folder, or a line in one of its tables; it
says everything about itself, and a new one is known everywhere as it is there.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import Any, Generic, TypeVar

from qpa_exp.errors import InputError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The values of one config key, by name.

    Args:
        key: the config key that names an entry: ``qpa.backend``.
        entries: either the entries by name, or the package that holds one module for each. The
            module's name is the entry's, and its attribute ``ENTRY`` what it stands for; it is
            imported where it is asked for. Modules whose name begins with ``_`` are no entries.
        decides: config keys that only some of the entries read. An entry lists those that it does
            read in its attribute ``reads``, or gives them from the config where that is a function;
            under the others such a key has no effect.

    Examples:
        >>> from qpa_exp.registry import Registry
        >>> colours = Registry("colour", {"red": 1, "blue": 2})
        >>> colours["red"], list(colours)
        (1, ['red', 'blue'])
    """

    def __init__(
        self, key: str, entries: Mapping[str, T] | str, *, decides: Collection[str] = ()
    ) -> None:
        self.key, self.decides = key, tuple(decides)
        self._entries = entries

    def __eq__(self, other: object) -> bool:
        """Compare by identity: a comparison of the entries would import every one."""
        return self is other

    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[str]:
        if not isinstance(self._entries, str):
            return iter(self._entries)
        modules = pkgutil.iter_modules(import_module(self._entries).__path__)
        return iter(sorted(m.name for m in modules if not m.name.startswith("_")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        if not isinstance(self._entries, str):
            return name in list(self)
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            return False
        return find_spec(f"{self._entries}.{name}") is not None  # much faster than a list of them

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self:
            raise InputError(f"{self.key}={name} is unknown: give one of {', '.join(self)}.")
        if not isinstance(self._entries, str):
            return self._entries[name]
        entry: T = import_module(f"{self._entries}.{name}").ENTRY
        return entry


def read_key(config: Any, key: str) -> Any:
    """Return the value of a dotted key, such as ``qpa.n_mlp``."""
    return attrgetter(key)(config)


class NoEffect(InputError):
    """A key was set that nothing reads."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


def refuse_unread(config: Any, registries: Iterable[Registry[Any]]) -> None:
    """Refuse a key that was set and that nothing reads: a mistake in what was meant.

    A key that a registry ``decides`` about is read where the chosen entry says so. Where the
    registry's own key is not read, nor is any of these. A key that is not read must keep the
    schema's default.

    Args:
        config: any nest of dataclasses.
        registries: those of its keys, in any order.

    Raises:
        NoEffect: the first such key, its value, and who does not read it.
    """
    registries = list(registries)
    above = {one: [r for r in registries if one.key in r.decides] for one in registries}
    unread: dict[str, str] = {}
    for registry in TopologicalSorter(above).static_order():
        why = unread.get(registry.key)
        if why is None:
            name = read_key(config, registry.key)
            reads = getattr(registry[name], "reads", ())
            reads = reads(config) if callable(reads) else reads
            why = f"{registry.key}={name} does not read it"
        else:
            reads = ()
        for key in registry.decides:
            if key not in reads:
                unread.setdefault(key, why)
    for key, why in unread.items():
        value, default = read_key(config, key), read_key(type(config)(), key)
        if value != default:
            wrong = f"{key}={spelled(value)} has no effect"
            raise NoEffect(key, f"{wrong}: {why}; leave it at {spelled(default)}.")


def spelled(value: Any) -> str:
    """Return a value as a config file has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nest of dataclasses with its field: ``qpa.n_mlp``."""
    for item in fields(node):
        yield prefix + item.name, item
        value = getattr(node, item.name, None)
        if is_dataclass(value):
            yield from dotted(value, f"{prefix}{item.name}.")
