"""Hidden states of a frozen backbone, computed once for all epochs, and for all runs with it.

A table holds what enters the head for each position of each example but the last, which predicts
nothing. Examples that are alike (the blank lines of a padded text) are computed and kept once.

On disk a table is one safetensors file, mapped into memory. Its name is a digest of all that its
values depend on: the model's weights and config, the tokens of the examples themselves (so of the
text, the tokenizer and the layout), and the type that the backbone computes in. A checksum is
compared each time it is opened; a damaged table is made again.

A table is written block by block to ``<key>.part``, with a checksum of each block in
``<key>.journal``. A process that finds those of one that was killed keeps the blocks that are whole
and goes on from there. Whoever writes a table holds ``<key>.lock``; others that want it wait.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
import xxhash
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qpa_exp.fast_head.low_rank_loss import FinalLogits
from qpa_exp.files import is_marked, mark

log = logging.getLogger(__name__)


class _HeadReached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Backbone:
    """A language model up to its output head, frozen.

    Args:
        model: any of transformers' causal language models.
        autocast: the type that it computes in where that is not its weights' own.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None = None) -> None:
        self.model, self.autocast = model, autocast

    @torch.no_grad()
    def hidden(
        self,
        input_ids: Int[Tensor, "rows t"],
        attention_mask: Int[Tensor, "rows t"] | None,
        position_ids: Int[Tensor, "rows t"] | None = None,
    ) -> Float[Tensor, "rows t k"]:
        """Give what enters the head, on the model's device: after the last norm and any projection.

        Args:
            input_ids: of the examples.
            attention_mask: 1 where an id is real; None where positions tell which see each other.
            position_ids: of rows that hold several examples; None where each is one.
        """

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
            raise _HeadReached(given[0])

        model, device = self.model, self.model.device
        low = nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
        handle = model.get_output_embeddings().register_forward_pre_hook(stop)
        try:
            with low:
                given = {"attention_mask": attention_mask, "position_ids": position_ids}
                moved = {name: x.to(device) for name, x in given.items() if x is not None}
                model(input_ids=input_ids.to(device), use_cache=False, **moved)
        except _HeadReached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise RuntimeError(f"{type(model).__name__} did not call its output head.")

    @cached_property
    def identity(self) -> str:
        """A digest of the model without its head: its class, its config and its weights.

        What a method adds to the head changes nothing, so all methods share what is computed.
        """
        head = self.model.get_output_embeddings()
        of_head = next(name for name, module in self.model.named_modules() if module is head) + "."
        sha = hashlib.sha256(type(self.model).__name__.encode())
        config = self.model.config.to_dict()
        for key in ("_name_or_path", "transformers_version"):  # where it came from changes nothing
            config.pop(key, None)
        sha.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name.startswith(of_head):
                continue
            if isinstance(tensor, Tensor):
                sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
                sha.update(checksum(tensor.detach().cpu()).encode())
            else:  # what some quantisers add
                sha.update(f"{name} {tensor!r} ".encode())
        return sha.hexdigest()


def checksum(tensor: Tensor) -> str:
    """Hash a tensor's bytes."""
    return xxhash.xxh3_64_hexdigest(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


@torch.no_grad()
def find_final_logits(model: Any, input_ids: Int[Tensor, "rows tokens"]) -> FinalLogits | None:
    """Return what the model does to its head's output, seen in what it gives for a few tokens.

    Returns:
        The scale and soft cap that turn the head's output into the model's logits; None where
        there are none that do, or the head is not called once for all tokens.
    """
    head = model.get_output_embeddings()
    if head is None:
        return None
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, z: seen.append(z))
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits.double()
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].shape != logits.shape:
        return None
    z = seen[0].double()
    # 16 bits hold the head's output and the logits to about 1 in 200.
    tolerance = (1e-5 if seen[0].dtype.itemsize > 2 else 2e-2) * float(logits.abs().max())
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    for soft_cap in (None, cap):
        uncapped = logits
        if soft_cap is not None:
            uncapped = soft_cap * torch.atanh((logits / soft_cap).clamp(-1 + 1e-12, 1 - 1e-12))
        fitted = float((z * uncapped).sum() / z.square().sum())
        for scale in (1.0, fitted):
            final = FinalLogits(scale, soft_cap)
            if float((final(z) - logits).abs().max()) <= tolerance:
                return final
    return None


# --- the tables -------------------------------------------------------------------------------

GIB = 2**30
_FORMAT = "2"
_TOKENS_AT_A_TIME = 4096
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}

Track = Callable[[Iterator[Tensor], int, int], Iterator[Tensor]]
"""Passes blocks of a table on, and shows how many tokens have come: of so many, after so many."""


class HiddenTable:
    """The hidden states of some examples.

    Attributes:
        input_ids: of the examples that differ, in the order of their first appearance.
        lengths: how many ids of each are text.
        values: (examples that differ, tokens - 1, k), once the table is filled.
    """

    def __init__(
        self,
        backbone: Backbone,
        input_ids: Int[Tensor, "n t"],
        lengths: Int[Tensor, " n"],
        position_ids: Int[Tensor, "n t"] | None = None,
    ) -> None:
        self.backbone = backbone
        first: list[int] = []
        self._place: dict[bytes, int] = {}
        for example, key in enumerate(_keys(input_ids, lengths, position_ids)):
            if key not in self._place:
                self._place[key] = len(first)
                first.append(example)
        self.input_ids, self.lengths = input_ids[first], lengths[first]
        self.position_ids = None if position_ids is None else position_ids[first]
        self.values: Tensor | None = None

    def look_up(
        self,
        input_ids: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"],
        position_ids: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b predictions k"] | None:
        """Return the hidden states of these examples, copied.

        None where it does not have them all.
        """
        places = [self._place.get(key) for key in _keys(input_ids, lengths, position_ids)]
        if self.values is None or None in places:
            return None
        return self.values[places]

    @cached_property
    def shape(self) -> tuple[torch.Size, torch.dtype]:
        """Find the values' shape and type, by one token through the backbone."""
        one = self.backbone.hidden(self.input_ids[:1, :1], torch.ones(1, 1, dtype=torch.int64))
        different, tokens = self.input_ids.shape
        return torch.Size((different, tokens - 1, one.shape[-1])), one.dtype

    @property
    def size(self) -> int:
        """Bytes of the values."""
        shape, dtype = self.shape
        return shape.numel() * dtype.itemsize

    @cached_property
    def key(self) -> str:
        """A digest of all that the values depend on."""
        backbone = self.backbone
        sha = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for tensor in (self.input_ids, self.lengths, self.position_ids):
            if tensor is not None:
                sha.update(tensor.contiguous().numpy().tobytes())
        facts = [_FORMAT, backbone.identity, sha.hexdigest(), str(backbone.autocast)]
        facts += [backbone.model.device.type, version("torch"), version("transformers")]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:32]

    @property
    def row_size(self) -> int:
        """Bytes of one example's values."""
        return self.size // len(self.lengths)

    @property
    def tokens(self) -> int:
        """Count the tokens of all the examples that differ, padding included."""
        return self.input_ids.numel()

    @property
    def rows_a_block(self) -> int:
        """How many examples are computed at a time; the last block may have fewer."""
        return max(1, _TOKENS_AT_A_TIME // self.input_ids.shape[1])

    def blocks(self, first: int = 0) -> Iterator[Tensor]:
        """Yield the values, computed a few examples at a time, on the CPU; from this block on."""
        tokens, rows = self.input_ids.shape[1], self.rows_a_block
        for start in range(first * rows, len(self.input_ids), rows):
            part = slice(start, start + rows)
            ids, positions = self.input_ids[part], self.position_ids
            if positions is None:
                mask = (torch.arange(tokens) < self.lengths[part, None]).long()
                hidden = self.backbone.hidden(ids, mask)
            else:
                hidden = self.backbone.hidden(ids, None, positions[part])
            yield hidden[:, :-1].cpu().contiguous()

    def fill_in_memory(self, track: Track) -> None:
        """Compute the values, for as long as the process lasts."""
        shape, dtype = self.shape
        values = torch.empty(shape, dtype=dtype)
        free = values
        for block in track(self.blocks(), self.tokens, 0):
            free[: len(block)] = block
            free = free[len(block) :]
        self.values = values


def _keys(input_ids: Tensor, lengths: Tensor, position_ids: Tensor | None) -> Iterator[bytes]:
    """Yield what tells examples apart."""
    parts = [input_ids, lengths[:, None], *([] if position_ids is None else [position_ids])]
    for row in torch.cat(parts, dim=1).numpy():
        yield xxhash.xxh3_128_digest(row.tobytes())


FOLDER = "hidden_states"
"""The name of the tables' own directory within a cache."""

_TABLE, _PART, _JOURNAL, _LOCK = ".safetensors", ".part", ".journal", ".lock"
_OURS = re.compile(r"([0-9a-f]{32})(?:\.safetensors|\.part|\.journal|\.lock)")
_UNKNOWN = "0" * 16
"""What stands for a checksum while it is not known."""

_A_LINE = 17
"""Bytes of the journal for each block: its checksum and a newline."""

_SAID_EVERY = 60.0
"""Seconds between two lines that say what is waited for."""


@dataclass(frozen=True)
class _Found:
    """Files of a table, the bytes that they take, and when they were used last."""

    key: str
    files: list[Path]
    size: int
    used: float


class TableDirectory:
    """The tables of a cache, none of which is needed: the oldest make room for new ones.

    They lie in a directory of their own, with the package's mark. What is removed there has a name
    of the tables' own form; nothing else in the cache is touched.

    Args:
        cache: the directory that tables lie within.
        bound: bytes that they may take together, unfinished ones included.

    Attributes:
        path: where the tables lie.
    """

    def __init__(self, cache: Path, bound: float | int) -> None:
        self.path, self.bound = cache / FOLDER, bound

    @property
    def is_ours(self) -> bool:
        """Whether the directory is there and has the package's mark."""
        with suppress(OSError):
            return is_marked(self.path)
        return False

    def make(self) -> None:
        """Make the directory, and its parents, where it is not there.

        Raises:
            OSError: it cannot be made, or nothing can be written there.
            InputError: somebody else's files lie there.
            ValueError: no path at all.
        """
        mark(self.path)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))

    def has(self, table: HiddenTable) -> bool:
        """Whether this table is there; whether it is whole is seen when it is opened."""
        with suppress(OSError):
            return self._file(table.key, _TABLE).is_file()
        return False

    def refusal(self, tables: Collection[HiddenTable], *, on_disk: bool = True) -> str | None:
        """Why there is no room for these tables, as it goes on after "hidden states"; or None."""
        size = sum(table.size for table in tables)
        if size > self.bound:
            return f"of {_gib(size)} are more than data.cache_gib={self.bound / GIB:g}"
        if on_disk:
            with suppress(OSError, ValueError):  # such a path is refused when it is made
                existing = next(p for p in (self.path, *self.path.parents) if p.exists())
                missing = size - sum(self._bytes_there(table.key) for table in tables)
                others = self._tables_but({table.key for table in tables})
                free = shutil.disk_usage(existing).free
                free += sum(other.size for other in others)  # which make room
                if missing > free:
                    return (
                        f"of {_gib(missing)} are more than the {_gib(free)} that are free in "
                        f"{existing}"
                    )
        return None

    def fill(self, table: HiddenTable, name: str, track: Track) -> None:
        """Fill a table: read it, or compute and write it where it is not there.

        Args:
            table: the table.
            name: what the log calls its examples.
            track: shows how far it is.

        Raises:
            OSError: it can be neither read nor written.
        """
        self.make()
        path = self._file(table.key, _TABLE)
        with self._locked(table.key, name):
            values = _open(path, table) if path.is_file() else None
            if values is None:
                self._make_room(table)
                log.info("Hidden states of the %s split: %s to %s", name, _gib(table.size), path)
                self._write(table, track)
                values = _open(path, table)
            if values is None:
                raise OSError(f"{path} cannot be read back")
            for unfinished in (_PART, _JOURNAL):
                self._file(table.key, unfinished).unlink(missing_ok=True)
            os.utime(path)
        table.values = values

    def _file(self, key: str, suffix: str) -> Path:
        return self.path / f"{key}{suffix}"

    def _bytes_there(self, key: str) -> int:
        """Count the bytes of the table, or of what there is of it."""
        for suffix in (_TABLE, _PART):
            with suppress(OSError):
                return self._file(key, suffix).lstat().st_size
        return 0

    @contextmanager
    def _locked(self, key: str, name: str) -> Iterator[None]:
        lock, patience = FileLock(self._file(key, _LOCK)), 0.5
        while not lock.is_locked:
            try:
                lock.acquire(timeout=patience)
            except Timeout:
                patience = _SAID_EVERY
                log.info("Another process has the hidden states of the %s split: waiting.", name)
        try:
            yield
        finally:
            lock.release()

    # --- making room ----------------------------------------------------------------------------

    def _tables_but(self, keys: Collection[str]) -> list[_Found]:
        """List what the directory holds of tables other than these, the oldest first."""
        files: defaultdict[str, list[Path]] = defaultdict(list)
        stats: defaultdict[str, list[os.stat_result]] = defaultdict(list)
        for file in self.path.iterdir() if self.path.is_dir() else ():
            match = _OURS.fullmatch(file.name)
            if match is None or match[1] in keys or not file.is_file() or file.is_symlink():
                continue
            with suppress(FileNotFoundError):  # another process may make room, too
                stats[match[1]].append(file.stat())
                files[match[1]].append(file)
        found = [
            _Found(key, files[key], sum(s.st_size for s in seen), max(s.st_mtime for s in seen))
            for key, seen in stats.items()
        ]
        return sorted(found, key=lambda other: other.used)

    def _make_room(self, table: HiddenTable) -> None:
        """Remove what is left of tables that are gone, and the oldest tables as it is needed.

        It is needed under the bound, and for the disk to hold this table.
        """
        others = self._tables_but({table.key})
        taken = sum(other.size for other in others)
        missing = table.size - self._bytes_there(table.key)
        for other in others:
            is_gone = not {_TABLE, _PART} & {file.suffix for file in other.files}
            is_full = taken + table.size > self.bound
            if is_gone or is_full or missing > shutil.disk_usage(self.path).free:
                taken -= self._remove(other.key, other.files)

    def _remove(self, key: str, files: list[Path]) -> int:
        """Take a table away, or what there is of it; how many bytes that were.

        What another process is writing, or waits for, stays; a whole table that is mapped into
        its memory stays there without its file.
        """
        lock = FileLock(self._file(key, _LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            files = [file for file in files if file.suffix == _TABLE]
        removed = 0
        try:
            for file in files:
                with suppress(FileNotFoundError):
                    removed += file.stat().st_size
                    file.unlink()
                    if file.suffix in (_TABLE, _PART):
                        log.info("To make room, %s is taken away.", file)
            if lock.is_locked:
                self._file(key, _LOCK).unlink(missing_ok=True)
        finally:
            lock.release()
        return removed

    # --- writing --------------------------------------------------------------------------------

    def _write(self, table: HiddenTable, track: Track) -> None:
        """Write a table block by block, after the whole blocks that are there already."""
        part, journal = self._file(table.key, _PART), self._file(table.key, _JOURNAL)
        digest = xxhash.xxh3_64()
        with _open_own(part) as data, _open_own(journal) as lines:
            done = _keep_whole_blocks(table, data, lines, digest)
            before = min(done * table.rows_a_block, len(table.lengths)) * table.input_ids.shape[1]
            for block in track(table.blocks(done), table.tokens, before):
                values = block.view(torch.uint8).numpy().data
                digest.update(values)
                data.write(values)
                data.flush()
                lines.write(_journal_line(values))
                lines.flush()
            data.seek(0)
            data.write(_header(table, digest.hexdigest()))
            data.flush()
            os.fsync(data.fileno())
        part.replace(self._file(table.key, _TABLE))


def _open_own(path: Path) -> IO[bytes]:
    """Give a file to read and write, made where there is none; never one that a link points to."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _keep_whole_blocks(
    table: HiddenTable, data: IO[bytes], lines: IO[bytes], digest: xxhash.xxh3_64
) -> int:
    """Leave both files at the end of the blocks that are whole, and count those into the digest.

    Returns:
        How many they are.
    """
    head = _header(table, _UNKNOWN)
    blocks = 0
    if data.read(len(head)) == head:
        for lengths in table.lengths.split(table.rows_a_block):
            values = data.read(len(lengths) * table.row_size)
            if len(values) < len(lengths) * table.row_size:
                break
            if lines.read(_A_LINE) != _journal_line(values):
                break
            digest.update(values)
            blocks += 1
    rows = min(blocks * table.rows_a_block, len(table.lengths))
    lines.seek(blocks * _A_LINE)
    lines.truncate()
    data.seek(0)
    data.write(head)
    data.seek(len(head) + rows * table.row_size)
    data.truncate()
    return blocks


def _journal_line(values: bytes | memoryview) -> bytes:
    return f"{xxhash.xxh3_64_hexdigest(values)}\n".encode()


def _header(table: HiddenTable, found: str) -> bytes:
    """Write the header of a safetensors file with the table's values and this checksum."""
    shape, dtype = table.shape
    offsets = [0, table.size]
    record = {
        "__metadata__": {"xxh3_64": found},
        "hidden": {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": offsets},
    }
    text = json.dumps(record).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _open(path: Path, table: HiddenTable) -> Tensor | None:
    """Return the table in a file, mapped into memory; None where the file is damaged."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_header(table, _UNKNOWN)))
        written = re.search(rb'"xxh3_64": "([0-9a-f]{16})"', begin)
        if written is not None and begin == _header(table, found := written[1].decode()):
            with safe_open(path, "pt") as opened:
                values: Tensor = opened.get_tensor("hidden")
            if checksum(values) == found:
                return values
    except (SafetensorError, OSError):  # cut short
        pass
    log.warning("%s is damaged: it is made again.", path)
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
