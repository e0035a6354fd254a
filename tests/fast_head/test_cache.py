"""Tables of hidden states: what they hold, when they are shared, and what damage does."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from qpa_exp.fast_head.backbone import hidden_states
from qpa_exp.fast_head.cache import Backbone, Rows, Shelf, default_directory, fingerprint, in_memory


def track(parts, total):
    return parts


@pytest.fixture
def model(make_gpt2):
    return make_gpt2().requires_grad_(False)


@pytest.fixture
def backbone(model):
    return Backbone(model, fingerprint(model))


@pytest.fixture
def rows(batch):
    """Six examples: three, and the same again, the last of them all padding."""
    ids = torch.cat([batch["input_ids"]] * 2)
    return Rows.of(ids, torch.cat([batch["attention_mask"].sum(1)] * 2))


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "cache", 2**20)


class Counting:
    """A backbone that counts the rows it computes."""

    def __init__(self, backbone, monkeypatch):
        self.rows = 0
        proper = backbone.hidden

        def hidden(ids, mask):
            self.rows += len(ids) if ids.shape[1] > 1 else 0
            return proper(ids, mask)

        monkeypatch.setattr(backbone, "hidden", hidden)


def test_examples_that_are_alike_are_kept_once_and_come_back_to_all(model, backbone, rows, batch):
    states = in_memory(backbone, rows, track)
    assert states.table.shape == (3, 11, 16)
    expected = hidden_states(model, batch["input_ids"], batch["attention_mask"])[:, :-1]
    torch.testing.assert_close(states.of([5, 0, 4]), expected[[2, 0, 1]], rtol=1e-5, atol=1e-5)


def test_the_length_tells_examples_apart_that_have_the_same_ids():
    rows = Rows.of(torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0, 1, 0]))
    assert rows.row_of.tolist() == [0, 1, 0]
    assert rows.lengths.tolist() == [0, 1]


def test_a_table_on_disk_is_computed_once(backbone, rows, shelf, monkeypatch):
    counting = Counting(backbone, monkeypatch)
    assert not shelf.has(backbone, rows)
    first = shelf.table(backbone, rows, "train", track)
    assert counting.rows == 3
    assert shelf.has(backbone, rows)
    again = shelf.table(backbone, rows, "train", track)
    assert counting.rows == 3
    assert torch.equal(first.table, again.table)
    assert torch.equal(first.table, in_memory(backbone, rows, track).table)
    assert not list(shelf.directory.glob(".*"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_keeps_the_type_of_the_hidden_states(model, rows, shelf, dtype):
    backbone = Backbone(model.to(dtype), "x")
    assert shelf.table(backbone, rows, "train", track).table.dtype == dtype


def test_what_the_values_depend_on_is_in_the_name(make_gpt2, rows, shelf):
    model = make_gpt2()
    names = {Backbone(model, fingerprint(model)).key(rows)}
    names.add(Backbone(model, fingerprint(model), torch.bfloat16).key(rows))
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1e-3
    names.add(Backbone(model, fingerprint(model)).key(rows))
    model.config.layer_norm_epsilon = 1e-3
    names.add(Backbone(model, fingerprint(model)).key(rows))
    other = Rows(rows.input_ids.clone(), rows.lengths, rows.row_of)
    other.input_ids[0, 0] += 1
    names.add(Backbone(model, fingerprint(model)).key(other))
    shorter = Rows(rows.input_ids, rows.lengths.clone(), rows.row_of)
    shorter.lengths[0] -= 1
    names.add(Backbone(model, fingerprint(model)).key(shorter))
    assert len(names) == 6


def test_where_a_model_came_from_is_not(make_gpt2, small_directory, tmp_path):
    model = make_gpt2()
    model.save_pretrained(tmp_path / "copy")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "copy")
    assert fingerprint(again) == fingerprint(model)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "one byte", "checksum"])
def test_a_damaged_table_is_made_again_and_said(backbone, rows, shelf, caplog, damage):
    expected = shelf.table(backbone, rows, "train", track).table.clone()
    (path,) = shelf.directory.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "one byte":
        data[-100] ^= 1
    if damage == "checksum":
        data = data.replace(b"xxh3_64", b"xxh3_65")
    content = {"cut": data[:-100], "empty": b"", "text": b"hello"}.get(damage, data)
    path.unlink()
    path.write_bytes(content)
    with caplog.at_level("WARNING"):
        assert torch.equal(shelf.table(backbone, rows, "train", track).table, expected)
    assert caplog.text.count("is damaged: it is made again") == 1
    caplog.clear()
    shelf.table(backbone, rows, "train", track)
    assert not caplog.text


def test_its_size_is_said_before_it_is_written(backbone, rows, shelf, caplog):
    def failing(parts, total):
        assert "Hidden states of the train split: 0.0 MiB to" in caplog.text
        raise KeyboardInterrupt

    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        shelf.table(backbone, rows, "train", failing)
    assert not list(shelf.directory.glob("*safetensors*"))


def test_the_bound_is_kept_to(backbone, rows, tmp_path, caplog):
    size = backbone.size(rows)
    assert Shelf(tmp_path, size).refusal(size) is None
    assert "more than data.cache_gib" in Shelf(tmp_path, size - 1).refusal(size)
    assert "that are free in" in Shelf(tmp_path / "new", 2**80).refusal(2**79)

    shelf = Shelf(tmp_path, size + size // 2)
    shelf.table(backbone, rows, "train", track)
    other = Rows(rows.input_ids.flip(0), rows.lengths.flip(0), rows.row_of)
    with caplog.at_level("INFO"):
        shelf.table(backbone, other, "train", track)
    assert "is taken away" in caplog.text
    assert not shelf.has(backbone, rows)
    assert shelf.has(backbone, other)


def build_in_another_process(directory, results, marks):
    torch.set_num_threads(1)
    config = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 40}
    from transformers import GPT2Config

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config)).eval()
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(40, (30, 32), generator=stream)

    def marking(parts, total):
        marks.put(os.getpid())
        yield from parts

    rows = Rows.of(ids, torch.full((30,), 32))
    shelf = Shelf(Path(directory), 2**20)
    table = shelf.table(Backbone(model, fingerprint(model)), rows, "train", marking).table
    results.put(float(table.double().sum()))


def test_processes_that_want_one_table_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results, marks = context.Queue(), context.Queue()
    arguments = (str(tmp_path), results, marks)
    both = [context.Process(target=build_in_another_process, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    sums = [results.get(timeout=120) for _ in both]
    for process in both:
        process.join(timeout=60)
    assert sums[0] == sums[1]
    marks.get(timeout=10)
    assert marks.empty()


def test_where_tables_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("QPA_EXP_CACHE", str(tmp_path / "own"))
    assert default_directory() == tmp_path / "own"
    monkeypatch.delenv("QPA_EXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "qpa_exp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == Path.home() / ".cache" / "qpa_exp"
