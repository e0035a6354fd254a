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
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn, TypeGuard
from weakref import WeakKeyDictionary

import torch
import xxhash
from filelock import FileLock
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from qpa_exp.fast_head.low_rank_loss import FinalLogits
from qpa_exp.files import whole_file
from qpa_exp.machine import free_memory

log = logging.getLogger(__name__)

_HASHED_AT_A_TIME = 64 * 2**20


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
        self._packing = Packing()

    @torch.no_grad()
    def hidden(
        self, input_ids: Int[Tensor, "rows t"], attention_mask: Int[Tensor, "rows t"]
    ) -> Float[Tensor, "rows t k"]:
        """What enters the head, on the model's device: after the last norm and any projection."""

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
            raise _HeadReached(given[0])

        model, device = self.model, self.model.device
        low = nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)
        handle = model.get_output_embeddings().register_forward_pre_hook(stop)
        try:
            with low, self._packing.used_by(model):
                mask = attention_mask.to(device)
                model(input_ids=input_ids.to(device), attention_mask=mask, use_cache=False)
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
    """Of a tensor's bytes."""
    digest = xxhash.xxh3_64()
    if tensor.numel():
        for part in tensor.contiguous().flatten().view(torch.uint8).split(_HASHED_AT_A_TIME):
            digest.update(part.numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def find_final_logits(model: Any, input_ids: Int[Tensor, "rows tokens"]) -> FinalLogits | None:
    """What the model does to its head's output, seen in what it gives for a few tokens.

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


# --- layers as oneDNN multiplies them fastest ------------------------------------------------

_FEWEST_INPUTS = 512
"""With fewer, a product is as fast without."""

_TOKENS = 512
"""For how many the blocks are chosen; they do for any number."""

_SHARE_OF_FREE = 1 / 4
"""Of the free memory, the most that the next copy may take."""

Layer = nn.Linear | Conv1D


class Packing:
    """The weights of a model's layers in the order of oneDNN's own blocks.

    Products with those, which compilers of models use, took four fifths of the time here, and
    GPT-2's activation is computed as the product leaves the registers. The blocks are a second
    copy, kept for as this is. It packs float32 weights that are not trained, on a CPU,
    while there is memory for the copies.

    Both operators are private: torch packs weights within ``torch.compile`` alone, which would
    take minutes for each model. ``Tensor._version`` is the one sign that a weight has changed.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, tuple[object, Tensor]] = WeakKeyDictionary()

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Within, ``model`` computes with packed weights; afterwards it is as it was."""
        ways = self._ways(model)
        for module, forward in ways.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in ways:
                del module.forward

    def _ways(self, model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """What modules do in place of their own forward pass."""
        ways: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        own = [module for module in model.modules() if "forward" not in vars(module)]
        for module in own:
            if _is_layer(module) and self._takes(module):
                ways[module] = partial(self._multiply, module)
            elif isinstance(module, NewGELUActivation):  # eight operations; torch has it as one
                ways[module] = partial(gelu, approximate="tanh")
        for block in own:
            if (
                isinstance(block, GPT2MLP)
                and isinstance(block.act, NewGELUActivation)
                and {block.c_fc, block.act} <= ways.keys()
            ):
                ways[block.c_fc] = partial(self._multiply, block.c_fc, then=("gelu", "tanh"))
                ways[block.act] = nn.Identity().forward
        return ways

    def _takes(self, layer: Layer) -> bool:
        """Whether the layer's products gain by it, and there is room for its copy."""
        if not _possible(layer.weight) or _rows(layer).shape[1] < _FEWEST_INPUTS:
            return False
        return layer in self._kept or layer.weight.nbytes <= _SHARE_OF_FREE * free_memory()

    def _multiply(
        self, layer: Layer, x: Float[Tensor, "*batch k"], then: tuple[str, str] = ("none", "")
    ) -> Float[Tensor, "*batch n"]:
        """What the layer gives for ``x``, and its activation's name and algorithm, if any."""
        activation, algorithm = then
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._blocks(layer), layer.bias, activation, [], algorithm
        )
        return found

    def _blocks(self, layer: Layer) -> Tensor:
        """The layer's weight in blocks, made anew where the weight is another since."""
        source = (layer.weight.data_ptr(), layer.weight._version)
        made_from, blocks = self._kept.get(layer, (None, layer.weight))
        if made_from != source:
            blocks = _pack(_rows(layer).detach().contiguous())
            self._kept[layer] = source, blocks
        return blocks


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Whether it is one of these and nothing derived from them: PEFT's and quantisers' are."""
    return type(module) in (nn.Linear, Conv1D)


def _rows(layer: Layer) -> Float[Tensor, "n k"]:
    """The weight as torch writes it; GPT-2 has it the other way round."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def _pack(rows: Float[Tensor, "n k"]) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(rows, _TOKENS)
    return blocks


def _possible(weight: Tensor) -> bool:
    """Whether there is such a product for this weight, and no gradient or autocast to mind."""
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not (weight.requires_grad or weight.is_inference())
        and not torch.is_autocast_enabled("cpu")
    )


# --- the tables -------------------------------------------------------------------------------

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

    def parts(self) -> Iterator[Tensor]:
        """The values, computed a few examples at a time, on the CPU."""
        tokens = self.input_ids.shape[1]
        step = max(1, _TOKENS_AT_A_TIME // tokens)
        for ids, lengths in zip(self.input_ids.split(step), self.lengths.split(step), strict=True):
            mask = (torch.arange(tokens) < lengths[:, None]).long()
            yield self.backbone.hidden(ids, mask)[:, :-1].cpu().contiguous()

    def fill_in_memory(self, track: Track) -> None:
        """Compute the values, for as the process lasts."""
        shape, dtype = self.shape
        values = torch.empty(shape, dtype=dtype)
        free = values
        for part in track(self.parts(), len(values)):
            free[: len(part)] = part
            free = free[len(part) :]
        self.values = values


def _keys(input_ids: Tensor, lengths: Tensor) -> Iterator[bytes]:
    """What tells examples apart."""
    for row in torch.cat([input_ids, lengths[:, None]], dim=1).numpy():
        yield xxhash.xxh3_128_digest(row.tobytes())


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
    for part in track(table.parts(), len(table.lengths)):
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
