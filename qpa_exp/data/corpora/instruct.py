"""The user's own instructions: rows with a prompt and its completion, or with a chat.

A row is kept as a record in JSON: ``{"prompt": ..., "completion": ...}``, both texts or both lists
of messages, or ``{"messages": [...]}``. ``data/instructions`` makes tokens of it. Chats may have
ShareGPT's form, too: a column ``conversations`` of ``{"from": "human", "value": ...}``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import OF_A_SOURCE, Corpus
from qpa_exp.data.sources import CHATS, TABLES, check_lines, text_column, texts_in
from qpa_exp.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT calls a role, and what chat templates call it."""


def records(table: Dataset, config: DataConfig, source: str, kind: str) -> list[str]:
    """Return the rows of a table as records."""
    names, pair = set(table.column_names), (config.prompt_column, config.completion_column)
    paired = config.column is None and set(pair) <= names
    column = config.column or next((name for name in CHATS if name in names), CHATS[0])
    if paired and column in names:
        raise InputError(
            f"{source} has both {pair[0]!r} with {pair[1]!r}, and {column!r}: give "
            f"data.column={column}, or a table without that column."
        )
    if not paired and pair != (type(config).prompt_column, type(config).completion_column):
        raise InputError(
            f"data.prompt_column={pair[0]} and data.completion_column={pair[1]} are for a table "
            f"with both, read without data.column; {source} has "
            f"{', '.join(map(repr, table.column_names))}."
        )
    if config.column is not None:
        column = text_column(table, config.column, source)
    if not paired and column not in names:
        raise InputError(
            f"{source} has neither {pair[0]!r} with {pair[1]!r} nor {column!r}, but "
            f"{', '.join(map(repr, table.column_names))}: give data.prompt_column= and "
            "data.completion_column=, or data.column=<that of the chats>."
        )
    if not paired:
        found: list[Any] = [{"messages": chat} for chat in _chats(table, column, source)]
    elif all(hasattr(table.features[name], "feature") for name in pair):  # lists of messages
        columns = [_chats(table, name, source) for name in pair]
        found = [{"prompt": a, "completion": b} for a, b in zip(*columns, strict=True)]
    else:
        prompts = texts_in(table, pair[0], source, blank=kind != "csv")
        answers = texts_in(table, pair[1], source, blank=False)
        found = [{"prompt": a, "completion": b} for a, b in zip(prompts, answers, strict=True)]
    written = [json.dumps(record, ensure_ascii=False) for record in found]
    check_lines(written, source)
    return written


def _chats(table: Dataset, column: str, source: str) -> list[list[dict[str, str]]]:
    """Return the chats of a column: lists of messages, each of which has texts alone."""
    if not hasattr(table.features[column], "feature"):
        raise InputError(
            f"Column {column!r} of {source} holds no chats: each is a list of messages like "
            '{"role": "user", "content": "..."}.'
        )
    chats = []
    for row, chat in enumerate(table.with_format(None)[column], 1):
        messages = [_message(each) for each in chat or ()]
        if not messages or None in messages:
            raise InputError(
                f"Row {row:,} of {source} has no chat in {column!r}: each of its messages is to "
                'have texts alone, like {"role": "user", "content": "..."}.'
            )
        chats.append([message for message in messages if message])
    return chats


def _message(given: Any) -> dict[str, str] | None:
    """Return a message without the keys that it lacks; None where it is none."""
    if not isinstance(given, dict):
        return None
    message = {key: value for key, value in given.items() if value is not None}
    if {"from", "value"} <= set(message) and not {"role", "content"} & set(message):
        role = message.pop("from")
        message = {"role": _ROLES.get(role, role), "content": message.pop("value")} | message
    texts = all(isinstance(value, str) for value in message.values())
    return message if texts and {"role", "content"} <= set(message) else None


ENTRY = Corpus(
    f"instructions, as {TABLES}",
    rows=None,
    rows_of_table=records,
    divisible=True,
    instructs=True,
    reads=(
        *OF_A_SOURCE, "data.column", "data.prompt_column", "data.completion_column",
        "data.chat_template",
    ),
)  # fmt: skip
