"""The Python Language Reference as CPython ships it: a document is a topic. No download."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import Corpus, Documents
from qpa_exp.data.sources import SPLITS
from qpa_exp.errors import InputError


def load(config: DataConfig) -> tuple[Documents, str]:
    """Return the topics by split, and which Python has them."""
    if config.path is not None:
        raise InputError(
            "data=pydoc comes with Python and reads no data.path; for text of your own set"
            f" data=text data.path={config.path}."
        )
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "This Python was installed without pydoc_data.topics, which data=pydoc reads; set"
            " data=text data.path=<file> instead."
        ) from error
    names = divide_topics(topics)
    splits = {split: [topics[name] for name in names[split]] for split in SPLITS}
    return splits, f"CPython {platform.python_version()} pydoc_data.topics"


def divide_topics(topics: Mapping[str, str]) -> dict[str, list[str]]:
    """Divide topics into splits so that no long paragraph of one split occurs in another.

    Topics that share a paragraph stay together. The groups come in an order that looks random but
    depends on nothing but names (the hash of each group's first), and each goes where it still
    fits: test up to 12 % of the characters, then validation up to 10 %, then train. So a group
    larger than that, like the one around compound statements, trains.
    """
    left = {"test": 0.12, "validation": 0.10}
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    total = sum(map(len, topics.values()))
    for group in sorted(_groups(topics), key=lambda g: hashlib.sha256(g[0].encode()).digest()):
        share = sum(len(topics[name]) for name in group) / total
        split = next((s for s in left if share <= left[s]), "train")
        if split in left:
            left[split] -= share
        splits[split] += group
    return {split: sorted(names) for split, names in splits.items()}


def _groups(topics: Mapping[str, str]) -> list[list[str]]:
    """Return the connected components of "shares a paragraph", each sorted by name."""
    group = {name: {name} for name in topics}
    owner: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in long_paragraphs(topics[name]):
            other = owner.setdefault(paragraph, name)
            if group[other] is not group[name]:
                merged = group[other] | group[name]
                group.update(dict.fromkeys(merged, merged))
    return sorted({min(members): sorted(members) for members in group.values()}.values())


def long_paragraphs(text: str) -> set[str]:
    """Return the paragraphs of more than 80 characters, their white space made single blanks."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {paragraph for paragraph in paragraphs if len(paragraph) > 80}


ENTRY = Corpus("Python Language Reference", load_own=load, reads=())
