"""What a setting is called: in words of the rooms that own the names, and of the study's file.

Overrides such as ``qpa.ansatz=frozen`` stand in tables alone. A figure says ``frozen circuit``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from qpa_exp.circuits.ansatz import ANSATZE
from qpa_exp.config import Config
from qpa_exp.data.corpus import CORPORA
from qpa_exp.generator.rules import REGISTRIES, VARIANTS
from qpa_exp.registry import dotted
from qpa_exp.report.comparisons import Row, family, is_generated

TRAINED = "trained circuit"
_REGISTRIES = {registry.key: registry for registry in (*REGISTRIES, CORPORA)}
_SAYS = {key: item.metadata.get("says", "") for key, item in dotted(Config())}
_CIRCUIT = "qpa.ansatz"
_OF_THE_ROW = {"peft", "qpa", "peft.method", "qpa.variant", _CIRCUIT}
_HOW = ("optim.", "trainer.", "data.")
"""Keys of how a setting is trained: named last, and only where what it is does not tell."""
_OPTION = "peft.options."

Words = dict[str, str]
"""What a setting says of each config key."""


def named(table: pd.DataFrame, groups: Mapping[str, Mapping[str, Any]] | None = None) -> pd.Series:
    """Return the name of every row, as :func:`grouped` has it, behind its group's."""
    return grouped(table, groups).apply(lambda both: ": ".join(filter(None, both)), axis=1)


def grouped(
    table: pd.DataFrame, groups: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """Return the ``group`` of every row, empty for none, and its ``name`` in it, empty where it is
    alone.

    A name is what a setting is made by, what stands in its circuit's place, and of the rest what
    tells it from the others. A row whose label is not written as overrides keeps that label.

    Args:
        table: rows of runs or of settings.
        groups: as a study's file has them; the first that fits holds.
    """
    heads = _heads(table)
    group = pd.Series("", index=table.index)
    for name, keys in (groups or {}).items():
        fits = pd.Series(True, index=table.index)
        for key, value in keys.items():
            fits &= table[key].map(lambda found, v=value: same(found, v)) if key in table else False
        group = group.mask(fits & (group == ""), name)
    names = pd.Series("", index=table.index)
    for name, part in table.groupby(group, sort=False):
        if not name or part["setting"].nunique() > 1:
            names.loc[part.index] = _within(part, heads.loc[part.index])
    return pd.DataFrame({"group": group, "name": names})


def maker(row: Row, table: pd.DataFrame) -> str:
    """Return what makes a setting's tensors: ``LoRA``, ``QPA``, or ``QPA, frozen circuit``."""
    if not is_generated(row):
        return family(row)
    variant, ansatz = VARIANTS[row["qpa.variant"]], ANSATZE[row[_CIRCUIT]]
    own = [variant.label] if variant.fixed else []
    in_place = [plain(ansatz.label)] if variant.circuit and not ansatz.is_whole else []
    return ", ".join([_generator(row, table), *own, *in_place])


def _generator(row: Row, table: pd.DataFrame) -> str:
    """``QPA``, or what it is without a circuit; with the method, where several are generated."""
    if table.loc[table["qpa.variant"] != "off", "peft.method"].nunique() > 1:
        return family(row)
    variant = VARIANTS[row["qpa.variant"]]
    return variant.family.strip() if variant.circuit else variant.label


def plain(label: str) -> str:
    r"""Return a label without the signs of a formula: ``R_Y`` for ``$R_Y$``."""
    return label.replace("\\", "").replace("$", "")


def value_of(key: str, value: Any) -> str:
    """Return a value in words: a registry's label, ``exact`` shots, a number with thousands."""
    if key in _REGISTRIES and str(value) in _REGISTRIES[key]:
        return str(getattr(_REGISTRIES[key][str(value)], "label", value))
    if value is None or value != value or value in ("null", "None", ""):
        return "exact" if key == "qpa.shots" else "default"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value).strip("'\"")
    return f"{number:,.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:g}"


def words_of(key: str, value: Any) -> str:
    """Return a key and its value in words: ``window 64``, or where the key has none ``center =
    true``.
    """
    text = value_of(key, value)
    if (says := _SAYS.get(key, "")) and text not in ("exact", "none"):
        return says.format(text).removesuffix("s" if text == "1" else "\0")
    name = key.split(".")[-1].replace("_", " ")
    if text == "none":
        return f"no {name}"
    if key in _REGISTRIES or text == "exact":
        return text
    if text.lower() in ("true", "false"):
        return name if text.lower() == "true" else f"no {name}"
    return f"{name} = {text}"


def name_of(key: str) -> str:
    """Return a key on an axis: ``learning rate`` where it says what it is called, else its last
    part.
    """
    says = _SAYS.get(key, "").replace("{}", "").strip(" =")
    return says or key.split(".")[-1].replace("_", " ")


def named_without(table: pd.DataFrame, key: str) -> pd.Series | None:
    """Return the names of settings as though they did not differ in a key.

    None where labels are free.
    """
    given = table["label"].map(_overrides)
    if not given.map(bool).all():
        return None
    rest = given.map(lambda said: " ".join(f"{k}={v}" for k, v in said.items() if k != key))
    alone = table.assign(label=rest, setting=rest)
    return named(alone)


# --- how a name is made -----------------------------------------------------------------------


def _heads(table: pd.DataFrame) -> pd.Series:
    """Return what stands first; nothing where all settings are made alike."""
    generated = table["qpa.variant"] != "off"
    several = table["peft.method"].nunique() > 1 or generated.nunique() > 1
    variants = table.loc[generated, "qpa.variant"].nunique() > 1
    return table.apply(lambda row: _head(row, several, variants, table), axis=1)


def _head(row: pd.Series, several: bool, variants: bool, table: pd.DataFrame) -> str:
    if not is_generated(row):
        return family(row)
    variant = VARIANTS[row["qpa.variant"]]
    head = _generator(row, table) if several or not variant.circuit else ""
    own = variant.label if variants and variant.fixed else ""
    return ", ".join(part for part in (head, own) if part)


def _within(part: pd.DataFrame, heads: pd.Series) -> pd.Series:
    settings = part.drop_duplicates("setting").set_index("setting", drop=False)
    heads = heads.groupby(part["setting"]).first()
    names: dict[str, str] = {}
    for head, alike in settings.groupby(heads.reindex(settings.index), sort=False):
        names |= _told_apart(str(head) if heads.nunique() > 1 else "", alike)
    labels = settings["label"].to_dict()
    for setting, name in names.items():
        if list(names.values()).count(name) > 1 or (
            labels[setting] and not _overrides(labels[setting])
        ):
            names[setting] = labels[setting]
    return part["setting"].map(names)


def _told_apart(head: str, settings: pd.DataFrame) -> dict[str, str]:
    """Return the names of settings that are made alike: the fewest words that tell them apart."""
    words = {name: _words(row, settings) for name, row in settings.iterrows()}
    keys = list(dict.fromkeys(key for said in words.values() for key in said))
    values = {key: {said.get(key) for said in words.values()} for key in keys}
    keys = sorted((k for k in keys if len(values[k]) > 1), key=lambda key: key.startswith(_HOW))

    def names(kept: list[str]) -> dict[Any, str]:
        said = {n: ", ".join(w[key] for key in kept if key in w) for n, w in words.items()}
        between = ", " if "," in head or head.islower() else " "  # LoRA r = 4; random features, …
        return {n: between.join(part for part in (head, text) if part) for n, text in said.items()}

    for key in reversed(keys):  # what a study's file says last says least
        fewer = [other for other in keys if other != key]
        alone = any(said.keys() & {*keys} == {key} for said in words.values())
        tells = alone and not key.startswith(_HOW)
        if len(set(names(fewer).values())) == len(words) and not tells:
            keys = fewer
    return {name: text or "default" for name, text in names(keys).items()}


def _words(row: pd.Series, settings: pd.DataFrame) -> Words:
    given = _overrides(row["label"])
    options = [key for key in given if key.startswith(_OPTION)]
    words = {}
    for key, value in given.items():
        if key in _OF_THE_ROW:
            continue
        if value == "null" and (known := row.get(key)) is not None and known == known:
            value = known  # as a rule gave it
        words[key] = value_of(key, value) if options == [key] else words_of(key, value)
    if _CIRCUIT in given and VARIANTS[row["qpa.variant"]].circuit:
        words = {_CIRCUIT: _in_place(row, settings)} | words
    return words


def _in_place(row: pd.Series, settings: pd.DataFrame) -> str:
    """Return the circuit, or what stands in its place."""
    entry = ANSATZE[row[_CIRCUIT]]
    whole = [name for name in set(settings[_CIRCUIT]) if ANSATZE[name].is_whole]
    return TRAINED if entry.is_whole and len(whole) == 1 else entry.label


_OVERRIDE = re.compile(r"(?:^|(?<= ))\+{0,2}([A-Za-z_][\w./@]*)=")


def _overrides(label: str) -> Words:
    """``a=1 b.c=2`` taken apart; nothing where it is written otherwise."""
    found = list(_OVERRIDE.finditer(label))
    if not found or found[0].start():
        return {}
    ends = [match.start() for match in found[1:]] + [len(label)]
    return {
        match[1]: label[match.end() : end].strip() for match, end in zip(found, ends, strict=True)
    }


def same(found: Any, wanted: Any) -> bool:
    """Return whether a run's value of a key is the one that a study's file gives."""
    if isinstance(wanted, list):
        return bool(found == json.dumps(wanted))
    try:
        return float(found) == float(wanted)
    except (TypeError, ValueError):
        return str(found) == str(wanted)
