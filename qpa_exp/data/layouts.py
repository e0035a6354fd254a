"""From documents to token ids: one padded line each, as in the paper, or packed blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qpa_exp.errors import InputError
from qpa_exp.lm.losses import IGNORED

_DOCUMENTS_PER_CALL = 1000


@dataclass(frozen=True)
class Examples:
    """Token ids, and the class of each example where there is one.

    The real ids of a row come first, what follows them is EOS padding. A row may be all padding:
    a blank line has no token.

    Attributes:
        input_ids: (n, t) int64.
        lengths: how many of a row's ids are real.
        classes: the number of each example's class; None where only tokens are predicted.
    """

    input_ids: Int[Tensor, "n t"]
    lengths: Int[Tensor, " n"]
    classes: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def attention_mask(self) -> Int[Tensor, "n t"]:
        """1 where an id is real, 0 where it is padding."""
        return mask(self.lengths, self.input_ids.shape[1])


def labels(examples: Examples, rows: list[int]) -> Int[Tensor, ...]:
    """What some examples are trained towards.

    Returns:
        Their classes, (rows,); or their own tokens, (rows, t), ``IGNORED`` where they are padding.
    """
    if examples.classes is not None:
        return examples.classes[rows]
    ids = examples.input_ids[rows]
    return ids.masked_fill(mask(examples.lengths[rows], ids.shape[1]) == 0, IGNORED)


def mask(lengths: Int[Tensor, " n"], width: int) -> Int[Tensor, "n {width}"]:
    """(n,) lengths to (n, width) int64: 1 in the first ``lengths[i]`` places of row i, then 0."""
    return (torch.arange(width) < lengths[:, None]).long()


def lay_out(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, layout: str, max_length: int
) -> Examples:
    """Tokenise ``documents`` into examples of ``max_length`` = t ids each.

    The tokenizer is called plainly, as the paper's released code calls it: whatever special tokens
    it adds by default (none for GPT-2, BOS for Gemma) are real tokens, and no others are added
    within a document.

    - ``lines``: document i is example i, truncated to t and padded at the right with EOS, as in
      the paper's runs.
    - ``blocks``: all documents in one stream with an EOS between each two, cut into blocks of t
      ids; what is left at the end is dropped.

    Raises ``InputError`` where the tokenizer has no EOS, or the text does not fill one block.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no EOS token,"
            " which separates documents and pads lines: set its eos_token."
        )
    arrange = _lines if layout == "lines" else _blocks
    return arrange(documents, tokenizer, tokenizer.eos_token_id, max_length)


def _lines(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos: int, max_length: int
) -> Examples:
    rows = list(_tokenise(documents, tokenizer, max_length))
    if not rows:
        raise InputError("There is no line of text to make an example of.")
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.full((len(rows), max_length), eos)
    # A boolean index runs row by row, which is the order of the ids.
    input_ids[mask(lengths, max_length).bool()] = _concatenate(rows)
    return Examples(input_ids=input_ids, lengths=lengths)


def _blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos: int, max_length: int
) -> Examples:
    rows = [ids for row in _tokenise(documents, tokenizer, None) for ids in ([eos], row)]
    stream = _concatenate(rows[1:])
    n = len(stream) // max_length
    if n == 0:
        raise InputError(
            f"The text has {len(stream)} tokens, fewer than one block of {max_length}: set"
            " data.max_length to no more than that, or give more text."
        )
    # A copy, so that the dropped remainder is not kept in memory.
    input_ids = stream[: n * max_length].view(n, max_length).clone()
    return Examples(input_ids=input_ids, lengths=torch.full((n,), max_length))


def _concatenate(rows: Sequence[Sequence[int]]) -> Int[Tensor, " total"]:
    return torch.tensor([token for row in rows for token in row], dtype=torch.int64)


def _tokenise(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Iterator[list[int]]:
    for start in range(0, len(documents), _DOCUMENTS_PER_CALL):
        yield from tokenizer(
            list(documents[start : start + _DOCUMENTS_PER_CALL]),
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,  # a stream longer than the model's context is cut right after
        )["input_ids"]
