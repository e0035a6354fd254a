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
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO

import torch
import xxhash
from filelock import FileLock
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qpa_exp.fast_head.backbone import Backbone, checksum
from qpa_exp.files.writing import whole_file

log = logging.getLogger(__name__)

GIB = 2**30
_FORMAT = "2"
_TOKENS_AT_A_TIME = 4096
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}

Track = Callable[[Iterator[Tensor], int], Iterator[Tensor]]
"""Passes parts of a table on, and shows how many of so many rows have come."""


class HiddenTable:
    """The hidden states of some examples.

    Attributes:
        input_ids: of the examples that differ, in the order of their first appearance.
        lengths: how many ids of each are text.
        values: (examples that differ, tokens - 1, k), once the table is filled.
    """

    def __init__(
        self, backbone: Backbone, input_ids: Int[Tensor, "n t"], lengths: Int[Tensor, " n"]
    ) -> None:
        self.backbone = backbone
        first: list[int] = []
        self._place: dict[bytes, int] = {}
        for example, key in enumerate(_keys(input_ids, lengths)):
            if key not in self._place:
                self._place[key] = len(first)
                first.append(example)
        self.input_ids, self.lengths = input_ids[first], lengths[first]
        self.values: Tensor | None = None

    def look_up(
        self, input_ids: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]
    ) -> Float[Tensor, "b predictions k"] | None:
        """The hidden states of these examples, copied; None where it does not have them all."""
        places = [self._place.get(key) for key in _keys(input_ids, lengths)]
        if self.values is None or None in places:
            return None
        return self.values[places]

    @cached_property
    def shape(self) -> tuple[torch.Size, torch.dtype]:
        """Of the values, and their type; the backbone is asked for one token."""
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
        for tensor in (self.input_ids, self.lengths):
            sha.update(tensor.contiguous().numpy().tobytes())
        facts = [_FORMAT, backbone.identity, sha.hexdigest(), str(backbone.autocast)]
        facts += [backbone.model.device.type, version("torch"), version("transformers")]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:32]

    def parts(self, track: Track) -> Iterator[Tensor]:
        """The values, computed a few examples at a time, on the CPU."""
        return track(self._parts(), len(self.lengths))

    def _parts(self) -> Iterator[Tensor]:
        tokens = self.input_ids.shape[1]
        step = max(1, _TOKENS_AT_A_TIME // tokens)
        for ids, lengths in zip(self.input_ids.split(step), self.lengths.split(step), strict=True):
            mask = (torch.arange(tokens) < lengths[:, None]).long()
            yield self.backbone.hidden(ids, mask)[:, :-1].cpu().contiguous()

    def fill_in_memory(self, track: Track) -> None:
        """Compute the values, for as long as the process lasts."""
        shape, dtype = self.shape
        values, begin = torch.empty(shape, dtype=dtype), 0
        for part in self.parts(track):
            values[begin : begin + len(part)] = part
            begin += len(part)
        self.values = values


def _keys(input_ids: Tensor, lengths: Tensor) -> Iterator[bytes]:
    """What tells examples apart."""
    for row in torch.cat([input_ids, lengths[:, None]], dim=1).numpy():
        yield xxhash.xxh3_128_digest(row.tobytes())


def default_directory() -> Path:
    """``$QPA_EXP_CACHE``, or ``qpa_exp`` in the user's cache directory."""
    if own := os.environ.get("QPA_EXP_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "qpa_exp"


class TableDirectory:
    """A directory of tables, none of which is needed: the oldest make room for new ones.

    Attributes:
        path: where the tables lie.
        bound: bytes that they may take together.
    """

    def __init__(self, path: Path, bound: float | int) -> None:
        self.path, self.bound = path, bound

    def has(self, table: HiddenTable) -> bool:
        """Whether this table is there; whether it is whole is seen when it is opened."""
        return self._file(table).is_file()

    def refusal(self, size: int, *, on_disk: bool = True) -> str | None:
        """Why tables of so many bytes cannot be kept, or None."""
        if size > self.bound:
            return f"{_gib(size)} are more than data.cache_gib={self.bound / GIB:g}"
        existing = self.path
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if on_disk and size > free:
            return f"{_gib(size)} are more than the {_gib(free)} that are free in {existing}"
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
        path = self._file(table)
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            values = _open(path, table.shape) if path.is_file() else None
            if values is None:
                self._make_room(table.size)
                log.info("Hidden states of the %s split: %s to %s", name, _gib(table.size), path)
                with whole_file(path) as file:
                    _write(file, table, track)
                values = _open(path, table.shape)
        if values is None:
            raise OSError(f"{path} cannot be read back.")
        os.utime(path)
        table.values = values

    def _file(self, table: HiddenTable) -> Path:
        return self.path / f"{table.key}.safetensors"

    def _make_room(self, size: int) -> None:
        files = sorted(self.path.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)
        taken = sum(file.stat().st_size for file in files)
        while files and taken + size > self.bound:
            oldest = files.pop(0)
            taken -= oldest.stat().st_size
            log.info("To make room, %s is taken away.", oldest)
            oldest.unlink(missing_ok=True)


def _write(file: IO[bytes], table: HiddenTable, track: Track) -> None:
    """A safetensors file whose data comes in parts; its checksum is filled in at the end."""
    shape, dtype = table.shape

    def header(found: str) -> bytes:
        offsets = [0, table.size]
        record = {
            "__metadata__": {"xxh3_64": found},
            "hidden": {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": offsets},
        }
        text = json.dumps(record).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    digest = xxhash.xxh3_64()
    file.write(header("0" * 16))
    for part in table.parts(track):
        data = part.view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    file.seek(0)
    file.write(header(digest.hexdigest()))


def _open(path: Path, expected: tuple[torch.Size, torch.dtype]) -> Tensor | None:
    """The table in a file, mapped into memory; None where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {})["xxh3_64"]
            values: Tensor = file.get_tensor("hidden")
        if (values.shape, values.dtype) == expected and checksum(values) == written:
            return values
    except (SafetensorError, OSError, KeyError, ValueError):
        pass
    log.warning("%s is damaged: it is made again.", path)
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
