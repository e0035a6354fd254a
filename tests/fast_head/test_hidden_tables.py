"""Tables of hidden states: what they hold, when they are shared, and what damage does."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from qpa_exp.fast_head.hidden_tables import Backbone, HiddenTable, TableDirectory


def track(parts, total):
    return parts


@pytest.fixture
def model(make_gpt2):
    return make_gpt2().requires_grad_(False)


@pytest.fixture
def backbone(model):
    return Backbone(model)


@pytest.fixture
def examples(batch):
    """Six examples: three, and the same again, the last of them all padding."""
    ids = torch.cat([batch["input_ids"]] * 2)
    return ids, torch.cat([batch["attention_mask"].sum(1)] * 2)


@pytest.fixture
def table(backbone, examples):
    return HiddenTable(backbone, *examples)


@pytest.fixture
def directory(tmp_path):
    return TableDirectory(tmp_path / "cache", 2**20)


class Counting:
    """A backbone that counts the rows it computes."""

    def __init__(self, backbone, monkeypatch):
        self.rows = 0
        proper = backbone.hidden

        def hidden(ids, mask):
            self.rows += len(ids) if ids.shape[1] > 1 else 0
            return proper(ids, mask)

        monkeypatch.setattr(backbone, "hidden", hidden)


def test_examples_that_are_alike_are_kept_once_and_come_back_to_all(backbone, table, batch):
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1)
    assert table.look_up(ids, lengths) is None
    table.fill_in_memory(track)
    assert table.values.shape == (3, 11, 16)
    expected = backbone.hidden(ids, batch["attention_mask"])[:, :-1]
    found = table.look_up(ids[[2, 0, 1]], lengths[[2, 0, 1]])
    torch.testing.assert_close(found, expected[[2, 0, 1]], rtol=1e-5, atol=1e-5)


def test_an_example_that_is_not_there_is_not_found(table, batch):
    table.fill_in_memory(track)
    ids, lengths = batch["input_ids"].clone(), batch["attention_mask"].sum(1)
    assert table.look_up(ids, lengths - (lengths > 0).long()) is None
    ids[0, 0] += 1
    assert table.look_up(ids, lengths) is None
    assert table.look_up(ids[1:], lengths[1:]) is not None


def test_the_length_tells_examples_apart_that_have_the_same_ids(backbone):
    table = HiddenTable(backbone, torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0, 1, 0]))
    assert table.lengths.tolist() == [0, 1]


def test_a_table_on_disk_is_computed_once(backbone, examples, table, directory, monkeypatch):
    counting = Counting(backbone, monkeypatch)
    assert not directory.has(table)
    directory.fill(table, "train", track)
    assert counting.rows == 3
    assert directory.has(table)
    again, kept = HiddenTable(backbone, *examples), HiddenTable(backbone, *examples)
    directory.fill(again, "train", track)
    assert counting.rows == 3
    assert torch.equal(table.values, again.values)
    kept.fill_in_memory(track)
    assert torch.equal(table.values, kept.values)
    assert not list(directory.path.glob(".*"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_keeps_the_type_of_the_hidden_states(model, examples, directory, dtype):
    table = HiddenTable(Backbone(model.to(dtype)), *examples)
    directory.fill(table, "train", track)
    assert table.values.dtype == dtype


def test_what_the_values_depend_on_is_in_the_name(make_gpt2, examples):
    model = make_gpt2()
    ids, lengths = examples
    names = {HiddenTable(Backbone(model), ids, lengths).key}
    names.add(HiddenTable(Backbone(model, torch.bfloat16), ids, lengths).key)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1e-3
    names.add(HiddenTable(Backbone(model), ids, lengths).key)
    model.config.layer_norm_epsilon = 1e-3
    names.add(HiddenTable(Backbone(model), ids, lengths).key)
    other = ids.clone()
    other[0, 0] += 1
    names.add(HiddenTable(Backbone(model), other, lengths).key)
    shorter = lengths.clone()
    shorter[0] -= 1
    names.add(HiddenTable(Backbone(model), ids, shorter).key)
    assert len(names) == 6


def test_where_a_model_came_from_is_not(make_gpt2, small_directory, tmp_path):
    model = make_gpt2()
    model.save_pretrained(tmp_path / "copy")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "copy")
    assert Backbone(again).identity == Backbone(model).identity


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "one byte", "checksum"])
def test_a_damaged_table_is_made_again_and_said(table, directory, caplog, damage):
    directory.fill(table, "train", track)
    expected = table.values.clone()
    (path,) = directory.path.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "one byte":
        data[-100] ^= 1
    if damage == "checksum":
        data = data.replace(b"xxh3_64", b"xxh3_65")
    content = {"cut": data[:-100], "empty": b"", "text": b"hello"}.get(damage, data)
    path.unlink()
    path.write_bytes(content)
    with caplog.at_level("WARNING"):
        directory.fill(table, "train", track)
        assert torch.equal(table.values, expected)
    assert caplog.text.count("is damaged: it is made again") == 1
    caplog.clear()
    directory.fill(table, "train", track)
    assert not caplog.text


def test_its_size_is_said_before_it_is_written(table, directory, caplog):
    def failing(parts, total):
        assert "Hidden states of the train split: 0.0 MiB to" in caplog.text
        raise KeyboardInterrupt

    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        directory.fill(table, "train", failing)
    assert not list(directory.path.glob("*safetensors*"))


def test_the_bound_is_kept_to(backbone, examples, table, tmp_path, caplog):
    size = table.size
    assert TableDirectory(tmp_path, size).refusal(size) is None
    assert "more than data.cache_gib" in TableDirectory(tmp_path, size - 1).refusal(size)
    elsewhere = TableDirectory(tmp_path / "new", 2**80)
    assert "that are free in" in elsewhere.refusal(2**79)
    assert elsewhere.refusal(2**79, on_disk=False) is None

    directory = TableDirectory(tmp_path, size + size // 2)
    directory.fill(table, "train", track)
    other = HiddenTable(backbone, *(tensor.flip(0) for tensor in examples))
    with caplog.at_level("INFO"):
        directory.fill(other, "train", track)
    assert "is taken away" in caplog.text
    assert not directory.has(table)
    assert directory.has(other)


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

    table = HiddenTable(Backbone(model), ids, torch.full((30,), 32))
    TableDirectory(Path(directory), 2**20).fill(table, "train", marking)
    results.put(float(table.values.double().sum()))


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
