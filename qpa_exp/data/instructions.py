"""Makes token ids of records of instructions; the answers alone carry loss.

A prompt and a completion that are texts are put together as they are, and EOS ends them, as TRL's
SFTTrainer does it. Chats are written by a chat template: the tokenizer's own, or
``data.chat_template``. Where the template marks what the assistant says (``{% generation %}``),
that carries loss; else what it adds to the chat so far for each of the assistant's turns does.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import Any

from transformers import PreTrainedTokenizerBase

from qpa_exp.errors import InputError, first_line
from qpa_exp.files import file_sha256, read_bytes, typed_path

_AT_A_TIME = 1000
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

_HIDDEN = "\ue000"
"""Stands for the content of a message; a character of Unicode's private use."""

Message = dict[str, str]


def template_sha256(template: str | None) -> str | None:
    """Return the hash of the file that ``data.chat_template`` names; None where it names none."""
    with suppress(OSError, ValueError):  # a template itself may be too long for a name
        if template is not None and (file := typed_path(template)).is_file():
            return file_sha256(file)
    return None


def template_text(given: str | None) -> str | None:
    """Read the chat template that ``data.chat_template`` gives: a file's text, or the text itself.

    Raises:
        InputError: there is no such file, and it is no template.
    """
    if given is None:
        return None
    if "{{" in given or "{%" in given:
        if given != given.encode(errors="replace").decode():
            raise InputError("data.chat_template holds text that is not valid UTF-8.")
        return given
    path = typed_path(given)
    if not path.is_file():
        raise InputError(
            f"data.chat_template={given:.200} is neither a file nor a template in Jinja's language."
        )
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"data.chat_template={path} is not UTF-8 text.") from error


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which examples share a row: the longest first, each where it leaves the least room.

    Args:
        lengths: of the examples, each at most ``width``.
        width: of a row.

    Returns:
        Their numbers, row by row.

    Examples:
        >>> pack([2, 7, 5, 1], 8)
        [[1, 3], [2, 0]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # that a row has left, and its number
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[i], -1))
        if place == len(room):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


# --- from a record to tokens ------------------------------------------------------------------


def tokenise_records(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> Iterator[tuple[str, list[int], list[bool]]]:
    """Return each record's answers as text, its ids, and which of those carry loss.

    Args:
        documents: records as JSON.
        tokenizer: the model's, with an EOS token.
        template: of chats; null is the tokenizer's own.

    Raises:
        InputError: a chat without a template, a template that cannot write a chat, or a record
            without an answer.
    """
    for start in range(0, len(documents), _AT_A_TIME):
        written = []
        for n, document in enumerate(documents[start : start + _AT_A_TIME], start + 1):
            try:
                written.append(_write(json.loads(document), tokenizer, template))
            except InputError as error:
                raise InputError(f"Row {n:,}: {error}") from error
        parts = list({part: None for each in written for part in each.parts})
        found = tokenizer(
            parts, add_special_tokens=written[0].special, return_attention_mask=False, verbose=False
        )["input_ids"]
        ids = dict(zip(parts, found, strict=True))
        for n, each in enumerate(written, start + 1):
            tokens, loss = each.tokens(ids)
            loss[:1] = [False] * len(loss[:1])  # nothing comes before it to predict it from
            if not any(loss):
                raise InputError(f"Row {n:,} has no answer to learn from.")
            yield each.answered, tokens, loss


@dataclass(frozen=True)
class Written:
    """A record as text.

    Attributes:
        text: all of it.
        answered: of its answers alone.
        answers: for each answer the text before it, and the text up to its end, or to the end.
        special: whether the tokenizer adds its special tokens: a template writes them itself.
        marked: the ids and which of them carry loss, where the template tells.
    """

    text: str
    answered: str
    answers: Sequence[tuple[str, str]] = ()
    special: bool = False
    marked: tuple[list[int], list[bool]] | None = None

    @property
    def parts(self) -> list[str]:
        """What is to be tokenised."""
        return [self.text, *(part for answer in self.answers for part in answer)]

    def tokens(self, ids: Mapping[str, list[int]]) -> tuple[list[int], list[bool]]:
        """Return the ids, and which of them carry loss.

        An answer begins where the ids of the whole and of the text before it part, as in TRL's
        SFTTrainer: tokens that reach across the border belong to the answer.
        """
        if self.marked is not None:
            return self.marked
        whole = ids[self.text]
        loss = [False] * len(whole)
        for before, upto in self.answers:
            begin, end = _shared(ids[before], whole), _shared(ids[upto], whole)
            loss[begin:end] = [True] * (end - begin)
        return whole, loss


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginnings."""
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))


def _write(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> Written:
    if isinstance(record.get("prompt"), str):
        if template is not None:
            raise InputError(
                "data.chat_template has no effect on prompts and completions that are plain text: "
                "leave it at null, or give chats."
            )
        prompt, answer, eos = record["prompt"], record["completion"], str(tokenizer.eos_token)
        text = prompt + (answer if answer.endswith(eos) else answer + eos)
        return Written(text, answer, [(prompt, text)], special=True)
    chat = _Chat(tokenizer, template)
    if "prompt" in record:
        prompt, messages = record["prompt"], record["prompt"] + record["completion"]
        chat.around(messages, _turns(messages, len(prompt)))
        text = chat.write(messages)
        answered = "\n".join(each["content"] for each in record["completion"])
        return Written(text, answered, [(chat.write(prompt, goes_on=True), text)])
    messages = record["messages"]
    turns = _turns(messages)
    if not turns:
        raise InputError("the chat has no message of the assistant's to learn from.")
    around, text = chat.around(messages, turns), chat.write(messages)
    said = (messages[n]["content"] for n in turns)
    answered = "\n".join(each if each in text else _spoken(each)[1] for each in said)
    if chat.marks:
        return Written("", answered, marked=chat.marked(messages))
    answers, place = [], 0  # where an answer ends; -1 where that cannot be told
    for n, before, after in zip(turns, around, around[1:], strict=False):
        begin = place + len(before)
        known = place >= 0 and text.startswith(before, place)
        place = (text.rfind if n == turns[-1] else text.find)(after, begin) if known else -1
        prompt = chat.write(messages[:n], goes_on=True) if n else before
        upto = chat.write(messages[: n + 1])
        if not text.startswith(upto):  # as of Qwen3, which drops what was thought in earlier turns
            if place < 0:
                raise InputError(
                    f"the chat template writes message {n + 1} otherwise when more follow, so that "
                    "what the assistant says in it cannot be told: give a data.chat_template with "
                    "{% generation %} around it."
                )
            upto = text[:place] + chat.around(messages[: n + 1], [n])[-1]
        answers.append((text[:begin] if known and not text.startswith(prompt) else prompt, upto))
    return Written(text, answered, answers)


def _turns(messages: Sequence[Message], start: int = 0) -> list[int]:
    """List the places of the assistant's messages, from ``start`` on."""
    return [n for n in range(start, len(messages)) if messages[n]["role"] == "assistant"]


def _spoken(content: str) -> tuple[str, str]:
    """Part what an assistant thinks, up to ``</think>``, from what it says after that."""
    *thought, said = content.rpartition("</think>")
    return "".join(thought), said.strip()


@dataclass(frozen=True)
class _Chat:
    """Writes chats by a template, which runs in transformers' sandbox."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None

    @property
    def marks(self) -> bool:
        """Whether the template marks what carries loss."""
        return bool(_MARKED.search(self._template()))

    def _template(self) -> str:
        if self.template is None and not self.tokenizer.chat_template:
            raise InputError(
                f"the tokenizer {self.tokenizer.name_or_path or type(self.tokenizer).__name__} has "
                "no chat template: give data.chat_template=<a file in Jinja's language, or its "
                "text>, or prompts and completions that are plain text."
            )
        return self.tokenizer.get_chat_template(self.template)

    def write(self, messages: Sequence[Message], *, goes_on: bool = False) -> str:
        """Write the chat as text; with what begins the assistant's turn, where it ``goes_on``."""
        return str(self._apply(messages, tokenize=False, add_generation_prompt=goes_on))

    def around(self, messages: Sequence[Message], turns: Sequence[int]) -> list[str]:
        """What the template writes before, between and after the contents of these messages.

        What an assistant thinks before it speaks counts as before.

        Raises:
            InputError: it does not write the content of one, or writes it more than once.
        """
        hidden = [
            each | {"content": _spoken(each["content"])[0] + _HIDDEN}
            if n in turns else each
            for n, each in enumerate(messages)
        ]  # fmt: skip
        pieces = self.write(hidden).split(_HIDDEN)
        if len(pieces) != len(turns) + 1:
            raise InputError(
                "the chat template does not write what the assistant says, once for each message: "
                "give a data.chat_template for chats of text."
            )
        return pieces

    def marked(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the chat as ids, and which of them the template marks."""
        found = self._apply(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]]

    def _apply(self, messages: Sequence[Message], **how: Any) -> Any:
        template = self._template()
        try:
            return self.tokenizer.apply_chat_template(list(messages), chat_template=template, **how)
        except Exception as error:  # the template's own, and whatever its code meets
            raise InputError(
                f"the chat template cannot write this chat: {type(error).__name__}: "
                f"{first_line(error)[:200]}"
            ) from error
