from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GemmaTokenizer, PreTrainedTokenizerFast

from qpa_exp.data.datamodule import TextSize, added_bos, labels, lay_out
from qpa_exp.errors import InputError

# Any text but lone surrogates, which no file can hold.
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=8
)
property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@property_test
@given(documents=texts, max_length=st.integers(1, 12))
def test_lines_hold_each_line_then_eos(tokenizer, documents, max_length):
    examples = lay_out(documents, tokenizer, "lines", max_length)
    assert examples.input_ids.shape == (len(documents), max_length)
    assert examples.input_ids.dtype == torch.int64
    assert len(examples) == len(documents)
    for row, length, document in zip(examples.input_ids, examples.lengths, documents, strict=True):
        ids = tokenizer(document)["input_ids"][:max_length]
        assert row[: len(ids)].tolist() == ids
        assert (row[len(ids) :] == tokenizer.eos_token_id).all()
        assert length == len(ids)


@property_test
@given(documents=texts, max_length=st.integers(1, 12))
def test_blocks_are_the_token_stream(tokenizer, documents, max_length):
    stream: list[int] = []
    for i, document in enumerate(documents):
        stream += [tokenizer.eos_token_id] * (i > 0) + tokenizer(document)["input_ids"]
    if len(stream) < max_length:
        with pytest.raises(InputError, match=f"has {len(stream)} tokens"):
            lay_out(documents, tokenizer, "blocks", max_length)
        return
    examples = lay_out(documents, tokenizer, "blocks", max_length)
    whole = len(stream) // max_length * max_length
    assert examples.input_ids.flatten().tolist() == stream[:whole]
    assert examples.lengths.eq(max_length).all()
    assert examples.input_ids.untyped_storage().nbytes() == whole * 8


def test_a_blank_line_is_all_padding(tokenizer):
    examples = lay_out(["", "a"], tokenizer, "lines", 4)
    assert examples.lengths.tolist() == [0, 1]
    assert examples.input_ids[0].tolist() == [tokenizer.eos_token_id] * 4


def test_long_text_gives_no_warning(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level("WARNING", logger="transformers")  # a run quietens it
    fresh = copy.deepcopy(tokenizer)
    fresh.deprecation_warnings = {}  # it warns once, which other tests may have used up
    lay_out(["word " * 100], fresh, "blocks", 8)
    assert not caplog.records
    fresh("word " * 100)
    assert "longer than the specified maximum" in caplog.text


def test_more_documents_than_one_call_takes_keep_their_order(tokenizer):
    documents = [str(i) for i in range(2500)]
    examples = lay_out(documents, tokenizer, "lines", 6)
    rows = zip(examples.input_ids, examples.lengths, strict=True)
    assert [tokenizer.decode(ids[:n]) for ids, n in rows] == documents


EOS, BOS, NEWLINE, A, B, C = range(6)


def of_letters(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    """A token a letter; BOS before every text, as Gemma's has it, or BOS that it never adds."""
    words = {"<eos>": EOS, "<bos>": BOS, "\n": NEWLINE, "a": A, "b": B, "c": C}
    letters = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if adds_bos:
        letters.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="<eos>", bos_token="<bos>", unk_token="<eos>"
    )


def test_bos_stands_before_every_line_and_every_block_where_the_tokenizer_adds_it():
    adds, adds_none = of_letters(adds_bos=True), of_letters(adds_bos=False)
    assert (added_bos(adds), added_bos(adds_none)) == ([BOS], [])
    gemma = GemmaTokenizer({"<bos>": 7, "<eos>": 1, "<unk>": 3}, merges=[], add_bos_token=True)
    assert added_bos(gemma) == [7]
    lines = lay_out(["a", "", "abc"], adds, "lines", 3)
    assert lines.input_ids.tolist() == [[BOS, A, EOS], [BOS, EOS, EOS], [BOS, A, B]]
    assert lines.lengths.tolist() == [2, 1, 3]
    blocks = lay_out(["ab", "ca", "b"], adds, "blocks", 4)
    assert blocks.input_ids.tolist() == [[BOS, A, B, EOS], [BOS, C, A, EOS]]
    assert lay_out(["ab", "c"], adds_none, "blocks", 4).input_ids.tolist() == [[A, B, EOS, C]]
    for laid, tokens in ((lines, 4), (blocks, 7)):
        assert laid.size.tokens == tokens


ROWS = ["", "ab\n", "", "c\n"]
"""As the hub has WikiText-2: a blank line has lost its newline."""


@pytest.mark.parametrize(
    ("join", "documents", "stream"),
    [
        ("text", ROWS, [NEWLINE, A, B, NEWLINE, NEWLINE, C, NEWLINE]),
        ("text", ["ab", "", "c"], [A, B, NEWLINE, NEWLINE, C]),
        ("blank_line", ROWS,
         [NEWLINE, NEWLINE, A, B, *3 * [NEWLINE], *2 * [NEWLINE], C, NEWLINE]),
        ("eos", ROWS, [EOS, A, B, NEWLINE, EOS, EOS, C, NEWLINE]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_tokens_of_each_join(join, documents, stream, adds_bos):
    letters = of_letters(adds_bos=adds_bos)
    laid = lay_out(documents, letters, "blocks", len(stream) + adds_bos, join=join)
    assert laid.input_ids.tolist() == [[BOS] * adds_bos + stream]
    assert laid.size == TextSize(len(stream), sum(map(bool, stream)), 2)


@property_test
@given(
    n=st.integers(2, 40), max_length=st.integers(2, 9), stride=st.integers(1, 9),
    adds_bos=st.booleans(),
)  # fmt: skip
def test_overlapping_blocks_are_the_windows_of_hugging_faces_guide(n, max_length, stride, adds_bos):
    text = "".join("abc"[i * i % 7 % 3] for i in range(n))
    letters, bos = of_letters(adds_bos=adds_bos), [BOS] * adds_bos
    ids = letters(text, add_special_tokens=False)["input_ids"]
    width = max_length - adds_bos
    stride = min(stride, max_length)
    if n < width:
        return
    laid = lay_out([text], letters, "blocks", max_length, stride=stride)
    windows, previous = [], 0
    for begin in range(0, n, min(stride, width)):
        end = min(begin + width, n)
        new = end - previous
        padding = max_length - len(bos) - (end - begin)
        targets = [*[-100] * (end - begin - new), *ids[end - new : end], *[-100] * padding]
        windows.append((bos + ids[begin:end] + [EOS] * padding, targets))
        previous = end
        if end == n:
            break
    given = labels(laid, list(range(len(laid))))
    assert laid.input_ids.tolist() == [row for row, _ in windows]
    # A row's first token is never predicted, BOS or not.
    expected = [(bos + targets)[1:] for _, targets in windows]
    assert given[:, 1:].tolist() == expected
    assert laid.lengths.tolist() == [min(max_length, n - i * min(stride, width) + adds_bos)
                                     for i in range(len(laid))]  # fmt: skip


@property_test
@given(documents=texts, max_length=st.integers(1, 12))
def test_the_size_of_a_split_is_that_of_its_whole_text(tokenizer, documents, max_length):
    size = lay_out(documents, tokenizer, "lines", max_length).size
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in documents)
    words = sum(len(text.split()) for text in documents)
    assert size == TextSize(tokens, len("".join(documents).encode()), words)


@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_no_eos_is_refused(tokenizer, layout):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no EOS token"):
        lay_out(["a"], bare, layout, 4)


@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_no_text_is_refused(tokenizer, layout):
    with pytest.raises(InputError):
        lay_out([], tokenizer, layout, 4)
