"""Rows of instructions and chat templates that are anything at all: tokens, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import load_corpus
from qpa_exp.data.instructions import template_text, tokenise_records
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import BUNDLED

GARBAGE = settings(max_examples=200, suppress_health_check=list(HealthCheck))
CHAT = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A map."}]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"])


def tokens_or_a_sentence(
    documents: Callable[[], Sequence[str]], tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    try:
        for _, ids, loss in tokenise_records(documents(), tokenizer, template_text(template)):
            assert len(ids) == len(loss)
            assert any(loss)
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


words = st.one_of(
    st.text(max_size=6), st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"])
)
cells: st.SearchStrategy[Any] = st.one_of(
    words, words, words, st.none(), st.booleans(), st.integers(-9, 9), st.floats(width=16),
    st.lists(words, max_size=2), st.dictionaries(words, words, max_size=1),
)  # fmt: skip
messages = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["role", "content", "from", "value", "tool_calls"], cells)
)
chats = st.one_of(st.lists(st.one_of(messages, st.sampled_from(CHAT)), max_size=4), cells)
rows = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["messages", "prompt", "completion", "conversations"], chats)
)


@GARBAGE
@given(rows=st.lists(rows, max_size=3).map(lambda some: [*some, {"messages": CHAT}] * 10))
def test_any_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(name="instruct", path=str(tmp_path / "a.jsonl"), layout="lines")
    tokens_or_a_sentence(lambda: load_corpus(config).splits["train"], tokenizer, TEMPLATE)


pieces = st.sampled_from([
    "{{ messages }}", "{{ messages[0].content }}", "{% for m in messages %}", "{% endfor %}",
    "{{ m.content }}", "{% generation %}", "{% endgeneration %}", "{% if m.role == 'assistant' %}",
    "{% endif %}", "{{ x.__class__ }}", "{{ raise_exception('no') }}", "{{ 'a' * 10**12 }}",
    "{{ 1 / 0 }}", "{% include '/etc/passwd' %}", "{{ [].append(1) }}", "{% macro a() %}{{ a() }}",
    "{% endmacro %}", "{{ a() }}", "{{ strftime_now('%Y') }}", "{%", "}}", "{# ", "\0", "\ud800",
    "{{ eos_token }}", "<|im_end|>", "{{ messages|tojson }}", "{{ range(10**9)|list }}",
])  # fmt: skip


@GARBAGE
@given(
    text=st.one_of(st.lists(pieces, max_size=7).map("".join), st.text(max_size=20)),
    in_file=st.booleans(),
)
def test_any_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, text: str, in_file: bool
) -> None:
    file = tmp_path / "a.jinja"
    file.write_bytes(text.encode(errors="surrogatepass"))
    record = json.dumps({"messages": CHAT})
    tokens_or_a_sentence(lambda: [record], tokenizer, str(file) if in_file else text)
