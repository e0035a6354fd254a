"""Files of an enemy: a valid one with one thing wrong, or no such file at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

SECRET = "hf_thisIsASecretThatNobodyMaySee"

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 3), max_size=3),
    st.sampled_from([
        10**12, 10**30, -(10**30), 10**400, 1e308, float("nan"), float("inf"), "", "NaN", "1e999",
        "${oc.env:HF_TOKEN}", "${mul:aaaaaaaaaa,1000000000}", "\\${oc.env:HF_TOKEN}", "\ud800",
        "../../victim", "/etc/passwd", "http://127.0.0.1:9/x", "~/x", "x" * 5000, "(a+)+$", "\0",
        "$\\frac{", "=cmd()", "-1", "\x1b[2J", [], {}, [[]], {"${oc.env:HF_TOKEN}": 1},
        {"_target_": "os.abort"}, [[[[[1]]]]], [10**30], [0], ["x"] * 3, {"x": {"x": {"x": 1}}},
    ]),
)  # fmt: skip

_NO_FILES = [
    b"", b"\0", b"null", b"[]", b"{}", b"1", b'"text"', b"NaN", b"1" * 5000, b"[" * 10_000,
    b'{"a":' * 10_000, b'{"a":1,"a":2}', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"{" + b" " * 99,
    b"---\n---\n", b"&a [*a]", b"- " * 5000, b"a: " * 5000, b"x" * 2**20,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, ...]]:
    """The path of every node of nested plain data."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [(key, *rest) for key, item in inside for rest in [(), *places(item)]]


def changed(valid: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    """The valid data with one node replaced, taken away, or given a companion."""
    record = copy.deepcopy(valid)
    owner = record
    for key in place[:-1]:
        owner = owner[key]
    if how == "replace":
        owner[place[-1]] = value
    elif how == "remove":
        del owner[place[-1]]
    elif isinstance(owner, dict):
        owner["added"] = value
    else:
        owner.append(value)
    return record


def in_json(value: Any) -> bytes:
    """As a JSON file has it."""
    return json.dumps(value).encode()


def in_yaml(value: Any) -> bytes:
    """As a run writes its config, and a person a study."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode(errors="replace")


def files_like(valid: Any, write: Callable[[Any], bytes] = in_json) -> st.SearchStrategy[bytes]:
    """What a crash, an editor or an enemy may leave in the place of a file of this data."""
    whole = write(valid)
    how = st.sampled_from(["replace", "replace", "replace", "remove", "add"])
    spoilt = st.builds(changed, st.just(valid), st.sampled_from(places(valid)), how, VALUES)
    return st.one_of(
        st.sampled_from(_NO_FILES),
        st.binary(max_size=64),
        st.integers(0, len(whole) - 1).map(lambda length: whole[:length]),
        st.builds(
            lambda at, more: whole[:at] + more + whole[at + 3 :],
            st.integers(0, len(whole)), st.binary(min_size=1, max_size=9),
        ),
        *[spoilt.map(write)] * 5,
    )  # fmt: skip
