"""Hidden states of a frozen backbone, computed once for all epochs, and for all runs with it.

A table holds what enters the head for each position of each example but the last, which predicts
nothing. Examples that are alike (the blank lines of a padded text) are computed and kept once.

On disk a table is one safetensors file, mapped into memory. Its name is a digest of all that its
values depend on: the model's weights and config, the tokens of the examples themselves (so of the
text, the tokenizer and the layout), and the type that the backbone computes in. It is written under
another name and renamed when it is whole; processes that want the same table wait for the one that
writes it. A checksum is compared each time it is opened; a damaged table is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from filelock import FileLock
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qpa_exp.fast_head.backbone import hidden_states
from qpa_exp.fast_head.packing import Packing

log = logging.getLogger(__name__)

GIB = 2**30
_FORMAT = "1"
_TOKENS_AT_A_TIME = 4096
_HASHED_AT_A_TIME = 64 * 2**20
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states of some examples.

    Attributes:
        table: those of the examples that differ, the last position left out.
        row_of: for each example its row of the table.
    """

    table: Float[Tensor, "different tokens k"]
    row_of: Int[Tensor, " examples"]

    def of(self, examples: list[int]) -> Float[Tensor, "examples tokens k"]:
        """The hidden states of these examples, copied out of the table."""
        return self.table[self.row_of[examples]]


@dataclass(frozen=True)
class Rows:
    """Examples as the backbone is given them, and which of them are alike.

    Attributes:
        input_ids: of the examples that differ, in the order of their first appearance.
        lengths: how many ids of each are text.
        row_of: for each example its place among those.
    """

    input_ids: Int[Tensor, "different t"]
    lengths: Int[Tensor, " different"]
    row_of: Int[Tensor, " examples"]

    @classmethod
    def of(cls, input_ids: Int[Tensor, "n t"], lengths: Int[Tensor, " n"]) -> Rows:
        """Find the examples that are alike."""
        seen: dict[bytes, int] = {}
        first: list[int] = []
        row_of: list[int] = []
        whole = torch.cat([input_ids, lengths[:, None]], dim=1).numpy()
        for example, row in enumerate(whole):
            place = seen.setdefault(row.tobytes(), len(first))
            if place == len(first):
                first.append(example)
            row_of.append(place)
        return cls(input_ids[first], lengths[first], torch.tensor(row_of))

    def digest(self) -> str:
        """A digest of the tokens."""
        sha = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for tensor in (self.input_ids, self.lengths):
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()


def fingerprint(model: Any) -> str:
    """A digest of a language model: its class, its config and all of its weights."""
    sha = hashlib.sha256(type(model).__name__.encode())
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version"):  # where it came from changes nothing
        config.pop(key, None)
    sha.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            sha.update(_checksum(tensor.detach().cpu()).encode())
        else:  # what some quantisers add
            sha.update(f"{name} {tensor!r} ".encode())
    return sha.hexdigest()


def default_directory() -> Path:
    """``$QPA_EXP_CACHE``, or ``qpa_exp`` in the user's cache directory."""
    if own := os.environ.get("QPA_EXP_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "qpa_exp"


class Backbone:
    """A frozen backbone that fills tables.

    Attributes:
        model: transformers' language model.
        identity: its :func:`fingerprint`.
        autocast: the type that it computes in where that is not its weights' own.
    """

    def __init__(self, model: Any, identity: str, autocast: torch.dtype | None = None) -> None:
        self.model, self.identity, self.autocast = model, identity, autocast
        self._packing = Packing()

    def hidden(
        self, input_ids: Int[Tensor, "rows t"], attention_mask: Int[Tensor, "rows t"]
    ) -> Float[Tensor, "rows t k"]:
        """What enters the head, on the backbone's device."""
        device = self.model.device
        context: Any = nullcontext()
        if self.autocast is not None:
            context = torch.autocast(device.type, self.autocast)
        with context:
            ids, mask = input_ids.to(device), attention_mask.to(device)
            return hidden_states(self.model, ids, mask, self._packing)

    def shape(self, rows: Rows) -> tuple[torch.Size, torch.dtype]:
        """The shape and type of the table of these rows; the backbone is asked for one token."""
        one = self.hidden(rows.input_ids[:1, :1], torch.ones(1, 1, dtype=torch.int64))
        different, tokens = rows.input_ids.shape
        return torch.Size((different, tokens - 1, one.shape[-1])), one.dtype

    def size(self, rows: Rows) -> int:
        """Bytes of the table of these rows."""
        shape, dtype = self.shape(rows)
        return shape.numel() * dtype.itemsize

    def parts(self, rows: Rows) -> Iterator[Tensor]:
        """The table of these rows, a few at a time, on the CPU."""
        tokens = rows.input_ids.shape[1]
        step = max(1, _TOKENS_AT_A_TIME // tokens)
        for ids, lengths in zip(rows.input_ids.split(step), rows.lengths.split(step), strict=True):
            mask = (torch.arange(tokens) < lengths[:, None]).long()
            yield self.hidden(ids, mask)[:, :-1].cpu().contiguous()

    def key(self, rows: Rows) -> str:
        """The name of the table of these rows."""
        facts = [_FORMAT, self.identity, rows.digest(), str(self.autocast), self.model.device.type]
        facts += [version("torch"), version("transformers")]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:32]


def in_memory(backbone: Backbone, rows: Rows, track: Track) -> HiddenStates:
    """A table that lasts as long as the process."""
    shape, dtype = backbone.shape(rows)
    table, begin = torch.empty(shape, dtype=dtype), 0
    for part in track(backbone.parts(rows), len(rows.lengths)):
        table[begin : begin + len(part)] = part
        begin += len(part)
    return HiddenStates(table, rows.row_of)


Track = Callable[[Iterator[Tensor], int], Iterator[Tensor]]
"""Passes parts on, and shows how many of so many rows have come."""


class Shelf:
    """A directory of tables, none of which is needed: the oldest make room for new ones.

    Attributes:
        directory: where the tables lie.
        bound: bytes that they may take together.
    """

    def __init__(self, directory: Path, bound: float | int) -> None:
        self.directory, self.bound = directory, bound

    def has(self, backbone: Backbone, rows: Rows) -> bool:
        """Whether this table is there; whether it is whole is seen when it is opened."""
        return self._path(backbone, rows).is_file()

    def over_bound(self, size: int) -> str | None:
        """Why tables of so many bytes are too many anywhere, or None."""
        if size > self.bound:
            return f"{_gib(size)} are more than data.cache_gib={self.bound / GIB:g}"
        return None

    def refusal(self, size: int) -> str | None:
        """Why tables of so many bytes cannot be written, or None."""
        if over := self.over_bound(size):
            return over
        existing = self.directory
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if size > free:
            return f"{_gib(size)} are more than the {_gib(free)} that are free in {existing}"
        return None

    def table(self, backbone: Backbone, rows: Rows, name: str, track: Track) -> HiddenStates:
        """The table of these rows: read, or computed and written where it is not there.

        Args:
            backbone: what computes it.
            rows: the examples.
            name: what the log calls them.
            track: shows how far it is.
        """
        path = self._path(backbone, rows)
        self.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            table = _open(path, backbone.shape(rows)) if path.is_file() else None
            if table is None:
                self._make_room(backbone.size(rows))
                self._write(path, backbone, rows, name, track)
                table = _open(path, backbone.shape(rows))
        if table is None:
            raise OSError(f"{path} cannot be read back.")
        os.utime(path)
        return HiddenStates(table, rows.row_of)

    def _path(self, backbone: Backbone, rows: Rows) -> Path:
        return self.directory / f"{backbone.key(rows)}.safetensors"

    def _write(self, path: Path, backbone: Backbone, rows: Rows, name: str, track: Track) -> None:
        shape, dtype = backbone.shape(rows)
        log.info(
            "Hidden states of the %s split: %s to %s",
            name, _gib(shape.numel() * dtype.itemsize), path,
        )  # fmt: skip
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                _write_table(file, shape, dtype, track(backbone.parts(rows), len(rows.lengths)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        tables = sorted(self.directory.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)
        taken = sum(table.stat().st_size for table in tables)
        while tables and taken + size > self.bound:
            oldest = tables.pop(0)
            taken -= oldest.stat().st_size
            log.info("To make room, %s is taken away.", oldest)
            oldest.unlink(missing_ok=True)


def _write_table(
    file: BinaryIO, shape: torch.Size, dtype: torch.dtype, parts: Iterator[Tensor]
) -> None:
    """A safetensors file whose data comes in parts; its checksum is filled in at the end."""
    size = shape.numel() * dtype.itemsize

    def header(checksum: str) -> bytes:
        record = {
            "__metadata__": {"xxh3_64": checksum},
            "hidden": {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [0, size]},
        }
        text = json.dumps(record).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    digest = xxhash.xxh3_64()
    file.write(header("0" * 16))
    for part in parts:
        data = part.view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    file.seek(0)
    file.write(header(digest.hexdigest()))


def _open(path: Path, expected: tuple[torch.Size, torch.dtype]) -> Tensor | None:
    """The table in a file, mapped into memory; None where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {})["xxh3_64"]
            table: Tensor = file.get_tensor("hidden")
        if (table.shape, table.dtype) == expected and _checksum(table) == checksum:
            return table
    except (SafetensorError, OSError, KeyError, ValueError):
        pass
    log.warning("%s is damaged: it is made again.", path)
    return None


def _checksum(tensor: Tensor) -> str:
    digest = xxhash.xxh3_64()
    if tensor.numel():
        for part in tensor.contiguous().flatten().view(torch.uint8).split(_HASHED_AT_A_TIME):
            digest.update(part.numpy().data)
    return digest.hexdigest()


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
