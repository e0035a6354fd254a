"""A table of hidden states that is anything at all: it is made again, bit for bit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpa_exp.fast_head.hidden_tables import Backbone, HiddenTable, TableDirectory


class Quick(Backbone):
    """Hidden states of nothing but a token and its place."""

    def hidden(self, input_ids: Any, attention_mask: Any) -> Any:
        return torch.sin(input_ids[..., None] + torch.arange(4.0))


@pytest.fixture
def table(make_gpt2: Any) -> HiddenTable:
    return HiddenTable(Quick(make_gpt2()), torch.arange(12).view(3, 4), torch.full((3,), 4))


@pytest.fixture
def directory(tmp_path: Path) -> TableDirectory:
    return TableDirectory(tmp_path, 2**20)


@pytest.fixture
def proper(table: HiddenTable, directory: TableDirectory) -> bytes:
    """What the table's file ought to hold."""
    directory.fill(table, "train", lambda blocks, *_: blocks)
    return (directory.path / f"{table.key}.safetensors").read_bytes()


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_table_file(
    table: HiddenTable, directory: TableDirectory, proper: bytes, data: st.DataObject
) -> None:
    length = struct.unpack("<Q", proper[:8])[0]
    place, flip = data.draw(st.integers(0, len(proper) - 1)), data.draw(st.integers(1, 255))
    header = json.loads(proper[8 : 8 + length]) | data.draw(
        st.dictionaries(
            st.sampled_from(["hidden", "__metadata__", "other"]),
            st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers())),
        )
    )
    text = json.dumps(header).encode()
    content = data.draw(
        st.sampled_from([
            data.draw(st.binary(max_size=60)),
            proper[:place],
            proper[:place] + bytes([proper[place] ^ flip]) + proper[place + 1 :],
            proper[:place] + data.draw(st.binary(max_size=9)) + proper[place:],
            struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + proper[8:],
            struct.pack("<Q", len(text)) + text + proper[8 + length :],
        ])
    )  # fmt: skip
    file = directory.path / f"{table.key}.safetensors"
    file.unlink()  # the old one is mapped
    file.write_bytes(content)
    table.values = None
    directory.fill(table, "train", lambda blocks, *_: blocks)
    assert table.values is not None
    assert torch.equal(table.values, next(table.blocks()))
    assert file.read_bytes() == proper
