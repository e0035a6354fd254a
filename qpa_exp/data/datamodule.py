"""The data of a run as Lightning asks for it: three loaders over token ids held in memory.

Training order is a pure function of (seed, epoch), and the training loader can be put back into
the middle of an epoch. Lightning does both through two hooks: before an epoch it calls
``loader.sampler.set_epoch(epoch)``, and it keeps ``loader.state_dict()`` in every checkpoint and
gives it to ``load_state_dict`` when it resumes, before it makes the first iterator.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qpa_exp.config import DataConfig
from qpa_exp.data.corpus import CORPORA, JOINS, CorpusText, load_corpus, split_name
from qpa_exp.data.sources import SPLITS
from qpa_exp.errors import InputError
from qpa_exp.lm.loading import check_known
from qpa_exp.lm.losses import IGNORED

log = logging.getLogger(__name__)

_DOCUMENTS_PER_CALL = 1000

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TextSize:
    """How large a split's text is as a whole, with what no example holds.

    Attributes:
        tokens: that the tokenizer makes of it, EOS between documents among them, BOS not.
        bytes: of UTF-8, newlines that were put between documents among them.
        words: between white space.
    """

    tokens: int
    bytes: int
    words: int


@dataclass(frozen=True)
class Examples(Dataset[Batch]):
    """Token ids, and the class of each example where there is one.

    The real ids of a row come first, what follows them is padding. A row may be all padding: a
    blank line has no token.

    Attributes:
        input_ids: (n, t) int64.
        lengths: how many of a row's ids are real.
        context: how many of a row's first ids are read and not scored; None for none.
        classes: the number of each example's class; None where only tokens are predicted.
        answers: which ids carry loss; None is all that are real and no context.
        position_ids: of rows that hold several examples, which must not see each other: each
            counts from 0. None where a row is one example.
        size: of the text that they were made from.
    """

    input_ids: Int[Tensor, "n t"]
    lengths: Int[Tensor, " n"]
    context: Int[Tensor, " n"] | None = None
    classes: Int[Tensor, " n"] | None = None
    size: TextSize | None = None
    answers: Bool[Tensor, "n t"] | None = None
    position_ids: Int[Tensor, "n t"] | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def __getitem__(self, rows: list[int]) -> Batch:
        """Return some examples as transformers' models take them.

        ``input_ids`` and ``attention_mask``, (b, t) int64, the mask 1 on real tokens, and
        ``labels``: see :func:`labels`. Where rows hold several examples, ``position_ids``, (b, t),
        count from 0 in each.
        """
        input_ids, positions = self.input_ids[rows], self.position_ids
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask(self.lengths[rows], input_ids.shape[1]),
            "labels": labels(self, rows),
        }
        return batch if positions is None else batch | {"position_ids": positions[rows]}


def labels(examples: Examples, rows: list[int]) -> Int[Tensor, ...]:
    """Return what some examples are trained towards.

    Returns:
        Their classes, (rows,); or their own tokens, (rows, t), ``IGNORED`` where they are padding
        or context, or no answer where only answers carry loss.
    """
    if examples.classes is not None:
        return examples.classes[rows]
    ids = examples.input_ids[rows]
    counted = mask(examples.lengths[rows], ids.shape[1])
    if examples.context is not None:
        counted -= mask(examples.context[rows], ids.shape[1])
    if examples.answers is not None:
        counted *= examples.answers[rows]
    return ids.masked_fill(counted == 0, IGNORED)


def mask(lengths: Int[Tensor, " n"], width: int) -> Int[Tensor, "n {width}"]:
    """(n,) lengths to (n, width) int64: 1 in the first ``lengths[i]`` places of row i, then 0."""
    return (torch.arange(width) < lengths[:, None]).long()


def lay_out(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    layout: str,
    max_length: int,
    *,
    join: str = "eos",
    stride: int | None = None,
    pad: int | None = None,
) -> Examples:
    """Tokenise ``documents`` into examples of ``max_length`` = t ids each.

    The tokenizer is called plainly, as the paper's released code calls it: whatever special tokens
    it adds by default (none for GPT-2, BOS for Gemma) are real tokens, and no others are added
    within a document.

    - ``lines``: document i is example i, truncated to t and padded at the right with EOS, as in
      the paper's runs.
    - ``blocks``: all documents in one stream, cut into blocks of t ids; what is left at the end is
      dropped. A tokenizer that adds BOS by default has it at the start of every block and nowhere
      else, so a block holds t - 1 ids of the stream.

    Args:
        documents: of one split.
        tokenizer: the model's.
        layout: ``lines`` or ``blocks``.
        max_length: t.
        join: what stands between documents in the stream of ``blocks``: one of ``JOINS``.
        stride: ids of the stream from one block to the next; less than a block holds makes them
            overlap, and what they share with the one before is context. The last block then holds
            what is left, padded. So Hugging Face's guide to perplexity has it
            (https://huggingface.co/docs/transformers/perplexity). None is blocks side by side.
        pad: what ``lines`` are padded with; None for EOS.

    Raises:
        InputError: the tokenizer has no EOS, or the text does not fill one block.
    """
    if not documents:
        raise InputError("There is no text to make an example of.")
    if layout == "lines":
        return _lines(documents, tokenizer, max_length, _eos(tokenizer) if pad is None else pad)
    return _blocks(JOINS[join](documents), tokenizer, max_length, stride)


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no EOS token,"
            " which separates documents and pads lines: set its eos_token."
        )
    return int(tokenizer.eos_token_id)


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what pads a text whose class is told: the tokenizer's own padding, or else EOS.

    Raises:
        InputError: it has neither.
    """
    pad = tokenizer.pad_token_id
    return _eos(tokenizer) if pad is None else int(pad)


def added_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the BOS that the tokenizer puts before every text by default; nothing where it has none.

    Examples:
        >>> from qpa_exp.lm.loading import BUNDLED
        >>> from transformers import AutoTokenizer
        >>> added_bos(AutoTokenizer.from_pretrained(BUNDLED["qpa_exp/tiny"]))
        []
    """
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


def _size(texts: Sequence[str], tokens: int) -> TextSize:
    n_bytes = sum(len(text.encode()) for text in texts)
    return TextSize(tokens, n_bytes, sum(len(text.split()) for text in texts))


def _lines(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, pad: int
) -> Examples:
    rows = list(_tokenise(documents, tokenizer, max_length))
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.full((len(rows), max_length), pad)
    # A boolean index runs row by row, which is the order of the ids.
    input_ids[mask(lengths, max_length).bool()] = _concatenate(rows)
    cut = [text for text, row in zip(documents, rows, strict=True) if len(row) == max_length]
    tokens = int(lengths.sum()) - max_length * len(cut) - len(added_bos(tokenizer)) * len(rows)
    tokens += sum(map(len, _tokenise(cut, tokenizer, None)))
    return Examples(input_ids, lengths, size=_size(documents, tokens))


def _blocks(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int | None
) -> Examples:
    bos, eos = added_bos(tokenizer), _eos(tokenizer)
    rows = (row[len(bos) :] for row in _tokenise(texts, tokenizer, None))
    stream = _concatenate([ids for row in rows for ids in ([eos], row)][1:])
    n_ids, width = len(stream), max_length - len(bos)
    size = _size(texts, n_ids)
    if n_ids < (width if stride is None else 1):
        raise InputError(
            f"The text has {n_ids} tokens, fewer than one block of {max_length}: set"
            " data.max_length to no more than that, or give more text."
        )
    if stride is None:
        n = n_ids // width
        # A copy, so that the dropped remainder is not kept in memory.
        input_ids = _after(bos, stream[: n * width].view(n, width).clone())
        return Examples(input_ids, torch.full((n,), max_length), size=size)
    step = min(stride, width)
    n = 1 + max(0, -(-(n_ids - width) // step))
    begins = step * torch.arange(n)
    padding = stream.new_full((int(begins[-1]) + width - n_ids,), eos)
    lengths = len(bos) + (n_ids - begins).clamp_max(width)
    context = torch.full((n,), max_length - step)
    context[0] = 0
    windows = torch.cat([stream, padding]).unfold(0, width, step)
    return Examples(_after(bos, windows), lengths, context, size=size)


def _after(bos: list[int], rows: Int[Tensor, "n width"]) -> Int[Tensor, "n t"]:
    """Return the rows, each after BOS where there is one."""
    return torch.cat([rows.new_tensor(bos).expand(len(rows), 1), rows], 1) if bos else rows


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


_Row = tuple[list[int], list[bool]]
"""The ids of an example, and which of them carry loss."""


def lay_out_records(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> Examples:
    """Tokenise records of instructions into examples.

    Under ``data.layout=lines`` a record is an example, padded at the right with EOS to the longest
    one. Under ``packed`` records lie side by side in rows of ``data.max_length``, each whole and
    with positions of its own. A longer record is cut at its end; one that has no answer left then
    is left out.

    Args:
        documents: records of one split, as JSON.
        tokenizer: the model's.
        config: of the data.

    Raises:
        InputError: no answer within ``data.max_length``, or a tokenizer without EOS; and as
            :func:`~qpa_exp.data.instructions.tokenise_records`.
    """
    from qpa_exp.data.instructions import pack, template_text, tokenise_records

    eos = _eos(tokenizer)
    longest, found = config.max_length, []
    cut = n_tokens = 0
    answers: list[str] = []
    for answered, ids, loss in tokenise_records(
        documents, tokenizer, template_text(config.chat_template)
    ):
        n_tokens, cut = n_tokens + sum(loss), cut + (len(ids) > longest)
        answers.append(answered)
        if any(loss[:longest]):
            found.append((ids[:longest], loss[:longest]))
    if cut:
        log.warning(
            "%d of %d examples are longer than data.max_length=%d and are cut at their ends; %d "
            "have no answer left and are left out.",
            cut, len(documents), longest, len(documents) - len(found),
        )  # fmt: skip
    if not found:
        raise InputError(
            f"No answer begins within data.max_length={longest} tokens: give a larger one."
        )
    size = _size(answers, n_tokens)
    if config.layout != "packed":
        return _rows([[row] for row in found], max(len(ids) for ids, _ in found), eos, size)
    packed = [[found[i] for i in row] for row in pack([len(ids) for ids, _ in found], longest)]
    laid = _rows(packed, longest, eos, size)
    places = [
        torch.arange(n)
        for row, length in zip(packed, laid.lengths.tolist(), strict=True)
        for n in (*(len(ids) for ids, _ in row), longest - length)  # the padding is one more
    ]
    return replace(laid, position_ids=torch.cat(places).view(-1, longest))


def _rows(rows: Sequence[Sequence[_Row]], width: int, eos: int, size: TextSize) -> Examples:
    """List the examples that each row holds, one after another."""
    lengths = torch.tensor([sum(len(ids) for ids, _ in row) for row in rows])
    real = mask(lengths, width).bool()
    input_ids = torch.full((len(rows), width), eos)
    answers = torch.zeros(len(rows), width, dtype=torch.bool)
    # A boolean index runs row by row, which is the order of the ids.
    input_ids[real] = _concatenate([ids for row in rows for ids, _ in row])
    answers[real] = _concatenate([loss for row in rows for _, loss in row]).bool()
    return Examples(input_ids, lengths, size=size, answers=answers)


def epoch_order(n: int, seed: int, epoch: int) -> Int[Tensor, " {n}"]:
    """Return the order in which an epoch visits ``n`` examples: a permutation, the same every time.

    Seed and epoch are hashed together, since their sum would give seed 1 the epochs of seed 0.
    """
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(n, generator=generator)


class ShuffledBatches(Sampler[list[int]]):
    """Batches of row numbers for training, from any batch of any epoch onwards.

    Every rank gets the same number of rows: the shuffled order is repeated from its start until
    the ranks divide it, then dealt out in turn, as ``DistributedSampler`` does. The last batch of
    an epoch may be short.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._given = 0  # batches of this epoch handed out so far
        self._start = 0  # the batch that the next iterator begins with

    def __len__(self) -> int:
        rows = -(-self.n // self.world_size)
        return -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: Lightning makes the first iterator before it says which epoch it is for.
        self._given, self._start = self._start, 0
        order = epoch_order(self.n, self.seed, self.epoch)
        total = -(-self.n // self.world_size) * self.world_size
        mine = order[torch.arange(total) % self.n][self.rank :: self.world_size]
        for batch in mine.split(self.batch_size)[self._given :]:
            self._given += 1
            yield batch.tolist()

    def set_epoch(self, epoch: int) -> None:
        """Turn to an epoch. A restored position holds in its own epoch only."""
        if epoch != self.epoch:
            self.epoch, self._given, self._start = epoch, 0, 0

    def _fixed(self) -> dict[str, int]:
        return {
            "rows": self.n,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "world_size": self.world_size,
        }

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches handed out; the same on every rank."""
        return {"epoch": self.epoch, "batches": self._given, **self._fixed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches of ``state``; an ``InputError`` where they would not fit."""
        for key, value in self._fixed().items():
            if state[key] != value:
                raise InputError(
                    f"The checkpoint's training data has {key} {state[key]}, this run's {value}:"
                    " it can only be resumed as it was configured."
                )
        self.epoch = state["epoch"]
        self._given = self._start = state["batches"]


class ResumableLoader(DataLoader[Batch]):
    """A loader that can go on in the middle of an epoch.

    Only with the tokens in this process: a worker would have drawn batches ahead of those handed
    out, which is all that the sampler counts.
    """

    sampler: ShuffledBatches

    def state_dict(self) -> dict[str, int]:
        """Where the sampler is."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Put the sampler back there."""
        self.sampler.load_state_dict(state)


_FEW_ROWS = 20
"""So few texts may each have a class of its own."""


def _check_classes(text: CorpusText) -> None:
    """Refuse numbers to be predicted, or lists of classes, which look like a class for each text.

    Raises:
        InputError: says how many there are.
    """
    numbers = [number for rows in text.classes.values() for number in rows]
    n_classes = len(set(numbers))
    if len(numbers) >= _FEW_ROWS and 2 * n_classes > len(numbers):
        raise InputError(
            f"{text.source} has {n_classes:,} classes in {len(numbers):,} texts, the first of them "
            f"{text.class_names[0]:.60}: give data.label_column=<a column of few classes>; numbers "
            "(regression) and several classes for a text are not supported."
        )


class TextDataModule(LightningDataModule):
    """A corpus, tokenised once, as batches for training, validation and test.

    Batches are dealt to the ranks here, so the Trainer must be made with
    ``use_distributed_sampler=False``.

    Args:
        config: the corpus and its layout.
        tokenizer: the model's.
        seed: of the order of training.
        classes: names of classes that the model tells apart, in their order, which holds where the
            text has the same; None where an example's labels are its tokens.

    Raises:
        InputError: the corpus or the tokenizer is not usable: see ``load_corpus``, ``lay_out``.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.seed, self.classes = config, tokenizer, seed, classes
        # Evaluation repeats no row, so with more ranks than rows some have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @cached_property
    def corpus(self) -> CorpusText:
        """The text, read at the first use."""
        text = load_corpus(self.config)
        if self.classes is None:
            return text
        _check_classes(text)
        if sorted(self.classes) != sorted(text.class_names):
            return text
        numbers = [self.classes.index(name) for name in text.class_names]
        classes = {split: [numbers[n] for n in rows] for split, rows in text.classes.items()}
        return replace(text, classes=classes, class_names=list(self.classes))

    @property
    def splits(self) -> dict[str, str]:
        """What a split serves for -> the name of the split that does."""
        return {role: split_name(getattr(self.config, f"{role}_split")) for role in SPLITS}

    @cached_property
    def examples(self) -> dict[str, Examples]:
        """The examples for ``train``, ``validation`` and ``test``, tokenised at the first use."""
        evaluated = self.config.stride
        wanted = {
            role: (split, None if role == "train" else evaluated)
            for role, split in self.splits.items()
        }
        laid = {how: self._lay_out(*how) for how in dict.fromkeys(wanted.values())}
        return {role: laid[how] for role, how in wanted.items()}

    def _lay_out(self, split: str, stride: int | None) -> Examples:
        config, documents = self.config, self.corpus.splits[split]
        corpus = CORPORA[config.name]
        join = config.join or corpus.join
        try:
            if corpus.instructs:
                return lay_out_records(documents, self.tokenizer, config)
            laid = lay_out(
                documents, self.tokenizer, config.layout, config.max_length, join=join,
                stride=stride, pad=None if self.classes is None else padding(self.tokenizer),
            )  # fmt: skip
            if self.classes is None:
                return laid
            return replace(laid, classes=torch.tensor(self.corpus.classes[split]))
        except InputError as error:
            raise InputError(f"The {split} split of {self.corpus.source}: {error}") from error

    def check_tokens(self, model: PreTrainedModel) -> None:
        """Refuse a token of the text, or of its padding, that the model has no embedding of.

        Raises:
            InputError: says which.
        """
        for examples in self.examples.values():
            check_known(examples.input_ids, self.tokenizer, model)
        if self.classes is not None:
            check_known(torch.tensor(padding(self.tokenizer)), self.tokenizer, model)

    def prepare_data(self) -> None:
        """Let one process of a machine fill the hub's cache before the others read it."""
        _ = self.corpus

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise everything; at once if that has been done."""
        _ = self.examples

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled by (seed, epoch); this rank's share, as many batches on every rank."""
        rows = self.examples["train"]
        sampler = ShuffledBatches(len(rows), self.config.batch_size, self.seed, **self._place())
        return ResumableLoader(rows, sampler=sampler, batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Load the examples in order; this rank's share, without repeats."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Load the examples in order; this rank's share, without repeats."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, role: str) -> DataLoader[Batch]:
        examples, place = self.examples[role], self._place()
        rows = range(place["rank"], len(examples), place["world_size"])  # in order, none twice
        sampler = BatchSampler(rows, self.config.eval_batch_size, drop_last=False)
        return DataLoader(examples, sampler=sampler, batch_size=None, generator=torch.Generator())

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
