"""Write ``docs/reference/config.md`` from the dataclasses: ``python docs/write_config_page.py``."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import Field, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from qpa_exp import config as schema
from qpa_exp.cli import compose_config
from qpa_exp.registry import dotted, read_key
from qpa_exp.runs.directory import REGISTRIES

PLACE = Path(__file__).resolve().parent / "reference" / "config.md"
HEAD = """# Every config key

For each key: its type, its range or choices, its default, and what it means. The default is that of
`python -m qpa_exp`; other options of a group may have another one. Set a key as `key=value` on the
command line. `null` means "not set".

This page is written from the code by `python docs/write_config_page.py`, and a test holds it to the
code.
"""
GROUPS = {
    "": "The run",
    "model": "`model`: the language model",
    "model.recipe": "`model.recipe`: how this model is trained",
    "peft": "`peft`: the PEFT method",
    "qpa": "`qpa`: the generator",
    "data": "`data`: the text",
    "optim": "`optim`: the optimizer",
    "trainer": "`trainer`: the training",
    "logger": "`logger`: where curves go",
}


def main() -> None:
    """Write the page."""
    PLACE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the whole page."""
    config = compose_config([])
    names = {registry.key: list(registry) for registry in REGISTRIES}
    rows: dict[str, list[str]] = {}
    for key, item in dotted(config):
        if is_dataclass(read_key(config, key)):
            continue
        group, _, _ = key.rpartition(".")
        owner = type(read_key(config, group)) if group else type(config)
        cells = [
            f"`{key}`", kind(item), allowed(item, names.get(key)),
            shown(read_key(config, key)), meanings(owner).get(item.name, ""),
        ]  # fmt: skip
        rows.setdefault(group, []).append("| " + " | ".join(cell(text) for text in cells) + " |")
    parts = [HEAD]
    for group, lines in sorted(rows.items(), key=lambda pair: list(GROUPS).index(pair[0])):
        table = ["| key | type | range | default | meaning |", "| --- | --- | --- | --- | --- |"]
        parts.append("\n".join([f"## {GROUPS[group]}", "", *table, *lines]) + "\n")
    return "\n".join(parts)


def kind(item: Field[Any]) -> str:
    """``int | None`` is ``int or null``."""
    return re.sub(r"\[(.*)\]", r" of \1", str(item.type)).replace("None", "null")\
        .replace(" | ", " or ").replace("str, dict of str, float", "tables of float")\
        .replace("dict of str, ", "table of ").replace("Any", "any")  # fmt: skip


def allowed(item: Field[Any], names: list[str] | None) -> str:
    """Return what the key may hold."""
    least, most = item.metadata.get("least"), item.metadata.get("most")
    choices = names or item.metadata.get("choices")
    if choices:
        return ", ".join(f"`{name}`" for name in choices)
    if item.metadata.get("positive"):
        return f"above 0, to {number(most)}"
    return "" if least is None else f"{number(least)} to {number(most)}"


def number(value: float) -> str:
    """``2^31``, ``1,000``, ``10^12``."""
    if isinstance(value, int) and value > 10_000:
        for base in (10, 2):
            power = round(len(str(value)) - 1) if base == 10 else value.bit_length() - 1
            if base**power == value:
                return f"{base}^{power}"
        if value == 2**63 - 1:
            return "2^63 - 1"
    return f"{value:,.12g}"


def shown(value: Any) -> str:
    """Return a value as it is typed."""
    if value == MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return "`null`" if value is None else f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return "a table" if value else "`{}`"
    return f"`{str(value).replace(chr(39), '')}`"


def meanings(owner: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass."""
    (body,) = (
        node.body for node in ast.walk(ast.parse(inspect.getsource(schema)))
        if isinstance(node, ast.ClassDef) and node.name == owner.__name__
    )  # fmt: skip
    found = {}
    for here, below in pairwise(body):
        if isinstance(here, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(here.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[here.target.id] = str(below.value.value)
    return found


def cell(text: str) -> str:
    """One line, without what would end the table's cell."""
    text = re.sub(r":\w+:`", "`", " ".join(text.split())).replace("``", "`")
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
