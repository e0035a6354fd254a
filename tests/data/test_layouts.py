from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from qpa_exp.data.datamodule import lay_out
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
    assert examples.input_ids.dtype == examples.attention_mask.dtype == torch.int64
    assert len(examples) == len(documents)
    for row, real, document in zip(
        examples.input_ids, examples.attention_mask, documents, strict=True
    ):
        ids = tokenizer(document)["input_ids"][:max_length]
        assert row[: len(ids)].tolist() == ids
        assert (row[len(ids) :] == tokenizer.eos_token_id).all()
        assert real.tolist() == [1] * len(ids) + [0] * (max_length - len(ids))


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
    assert examples.attention_mask.all()
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


def test_the_tokenizers_own_special_tokens_are_kept(tokenizer):
    # As Gemma's does: BOS before every text.
    with_bos = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        ),
        eos_token="<|endoftext|>",
        bos_token="<bos>",
    )
    bos, eos = with_bos.bos_token_id, with_bos.eos_token_id
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    (a,) = tokenizer("a")["input_ids"]
    lines = lay_out(["a", ""], with_bos, "lines", 3)
    assert lines.input_ids.tolist() == [[bos, a, eos], [bos, eos, eos]]
    assert lines.lengths.tolist() == [2, 1]
    blocks = lay_out(["a", "a"], with_bos, "blocks", 5)
    assert blocks.input_ids.tolist() == [[bos, a, eos, bos, a]]


@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_no_eos_is_refused(tokenizer, layout):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no EOS token"):
        lay_out(["a"], bare, layout, 4)


@pytest.mark.parametrize("layout", ["lines", "blocks"])
def test_no_text_is_refused(tokenizer, layout):
    with pytest.raises(InputError):
        lay_out([], tokenizer, layout, 4)
