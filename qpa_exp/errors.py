"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong, said in one sentence.

    The sentence names what is wrong, the value, and what would be right. Commands print it on
    standard error and leave with exit status 2; in Python it is an ordinary ``ValueError``.
    It is one line of at most 500 characters, whatever the value was.

    Examples:
        >>> from qpa_exp import InputError, QPAConfig
        >>> try:
        ...     QPAConfig(ansatz="rings")
        ... except InputError as error:
        ...     print(error)
        qpa.ansatz=rings is unknown: give one of classical, distributed, ...
    """

    def __init__(self, sentence: object = "") -> None:
        text = one_line("".join(c if c.isprintable() else " " for c in str(sentence)))
        super().__init__(text if len(text) <= _MOST else f"{text[:240]} ... {text[-240:]}")


_MOST = 500


def nearest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Give the at most ``n`` choices that look like ``word``, best first; none where none does."""
    return difflib.get_close_matches(word, sorted(set(choices)), n=n, cutoff=0.5)


def one_line(error: BaseException | str) -> str:
    """Return what another library's error says, folded into one line."""
    return " ".join(str(error).split())


def first_line(error: BaseException | str) -> str:
    """Return the first line of what another library's error says, where the rest is detail."""
    return one_line(str(error).strip().split("\n")[0])


def sentence_end(error: BaseException) -> str:
    """Return what another library's error says, as the end of a sentence: one full stop."""
    return one_line(error).rstrip(".") + "."
