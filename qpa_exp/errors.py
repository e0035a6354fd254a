"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong, said in one sentence.

    The sentence names what is wrong, the value, and what would be right. Commands print it on
    standard error and leave with exit status 2; in Python it is an ordinary ``ValueError``.
    """


def nearest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The at most ``n`` choices that look like ``word``, best first; none where none does."""
    return difflib.get_close_matches(word, sorted(set(choices)), n=n, cutoff=0.5)
