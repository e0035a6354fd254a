"""Tables of hidden states: what they hold, when they are shared, and what damage does."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from qpa_exp.errors import InputError
from qpa_exp.fast_head.hidden_tables import Backbone, HiddenTable, TableDirectory


def track(blocks, total, before):
    return blocks


def all_files(directory):
    """Names and contents, but for the mark and the locks."""
    files = [
        file
        for file in directory.path.iterdir()
        if file.suffix in (".safetensors", ".part", ".journal")
    ]
    return {file.name: file.read_bytes() for file in files}


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
    assert list(all_files(directory)) == [f"{table.key}.safetensors"]


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
    def failing(blocks, total, before):
        assert "Hidden states of the train split: 0.0 MiB to" in caplog.text
        raise KeyboardInterrupt

    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        directory.fill(table, "train", failing)
    assert not list(directory.path.glob("*safetensors*"))


def test_the_bound_is_kept_to(backbone, examples, table, tmp_path, caplog):
    size = table.size
    assert TableDirectory(tmp_path, size).refusal([table]) is None
    assert "more than data.cache_gib" in TableDirectory(tmp_path, size - 1).refusal([table])

    directory = TableDirectory(tmp_path, size + size // 2)
    directory.fill(table, "train", track)
    other = HiddenTable(backbone, *(tensor.flip(0) for tensor in examples))
    with caplog.at_level("INFO"):
        directory.fill(other, "train", track)
    assert "is taken away" in caplog.text
    assert not directory.has(table)
    assert directory.has(other)


def test_a_disk_that_is_too_small_is_said(table, directory, monkeypatch):
    class Usage:
        free = table.size - 1

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    assert "that are free in" in directory.refusal([table])
    assert directory.refusal([table], on_disk=False) is None


def test_old_tables_make_room_on_a_disk_below_the_bound(
    backbone, examples, table, directory, monkeypatch
):
    class Usage:
        def __init__(self, path):
            used = sum(f.stat().st_size for f in directory.path.iterdir() if f.suffix != ".lock")
            self.free = 5 * table.size // 2 - used

    monkeypatch.setattr("shutil.disk_usage", Usage)
    directory.make()
    tables = [table, *(HiddenTable(backbone, *(t.roll(n, 0) for t in examples)) for n in (1, 2))]
    for number, each in enumerate(tables):
        assert directory.refusal([each]) is None
        directory.fill(each, "train", track)
        os.utime(directory.path / f"{each.key}.safetensors", (number, number))
    assert [directory.has(each) for each in tables] == [False, True, True]
    assert "that are free in" in directory.refusal(tables)


# --- what a killed process leaves ---------------------------------------------------------------


class Quick(Backbone):
    """Hidden states of nothing but a token and its place."""

    def hidden(self, input_ids, attention_mask):
        return torch.sin(input_ids[..., None] + torch.arange(16.0))


@pytest.fixture
def long_table(model, monkeypatch):
    """Five blocks, the last of one example."""
    monkeypatch.setattr("qpa_exp.fast_head.hidden_tables._TOKENS_AT_A_TIME", 24)
    ids = torch.randint(1, 61, (9, 12), generator=torch.Generator().manual_seed(2))
    return HiddenTable(Quick(model), ids, torch.full((9,), 12))


def killed_after(n):
    """Filling ends, as if the process were killed, when so many blocks are written."""

    def stop(blocks, total, before):
        yield from itertools.islice(blocks, n)
        raise KeyboardInterrupt

    return stop


@pytest.fixture
def whole(long_table, tmp_path):
    """The file of a table that was never interrupted."""
    directory = TableDirectory(tmp_path / "whole", 2**20)
    directory.fill(long_table, "train", track)
    return all_files(directory)


@pytest.mark.parametrize("n", range(6))
def test_filling_goes_on_where_it_was_killed(long_table, directory, whole, monkeypatch, n):
    with pytest.raises(KeyboardInterrupt):
        directory.fill(long_table, "train", killed_after(n))
    counting = Counting(long_table.backbone, monkeypatch)
    seen = []

    def tracking(blocks, total, before):
        seen.append((before, total))
        return blocks

    directory.fill(long_table, "train", tracking)
    assert counting.rows == 9 - min(2 * n, 9)
    assert seen == [(12 * min(2 * n, 9), 108)]
    assert all_files(directory) == whole


@pytest.fixture
def left(long_table, tmp_path):
    """A part and its journal after four of five blocks."""
    directory = TableDirectory(tmp_path / "left", 2**20)
    with pytest.raises(KeyboardInterrupt):
        directory.fill(long_table, "train", killed_after(4))
    return all_files(directory)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    of_part=st.integers(0, 10_000), part=st.binary(max_size=40),
    of_journal=st.integers(0, 80), journal=st.binary(max_size=40),
)  # fmt: skip
def test_what_is_left_may_be_damaged_anyhow(
    long_table, directory, whole, left, of_part, part, of_journal, journal
):
    """Both files are cut somewhere, and something else follows."""
    directory.make()
    for suffix, keep, more in ((".part", of_part, part), (".journal", of_journal, journal)):
        name = f"{long_table.key}{suffix}"
        (directory.path / name).write_bytes(left[name][:keep] + more)
    directory.fill(long_table, "train", track)
    assert all_files(directory) == whole
    (directory.path / f"{long_table.key}.safetensors").unlink()


def test_a_full_disk_leaves_what_the_next_one_goes_on_from(
    long_table, directory, whole, monkeypatch
):
    def full(blocks, total, before):
        yield from itertools.islice(blocks, 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        directory.fill(long_table, "train", full)
    left = sum(map(len, all_files(directory).values()))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)

    class Usage:
        free = long_table.size - left + 1000

    assert directory.refusal([long_table]) is None
    directory.fill(long_table, "train", track)
    assert all_files(directory) == whole


# --- what is removed, and what is not -----------------------------------------------------------


def test_nothing_else_is_ever_removed(backbone, examples, table, tmp_path):
    """The user's own files, in the cache and in the tables' directory, and what is not a file."""
    cache = tmp_path / "cache"
    directory = TableDirectory(cache, table.size + table.size // 2)
    directory.fill(table, "train", track)
    theirs = [
        cache / "model.safetensors", cache / f"{'a' * 32}.safetensors",
        *(directory.path / name for name in
          ("model.safetensors", f"{'A' * 32}.safetensors", f"{'a' * 31}.part", "a.lock", "notes")),
    ]  # fmt: skip
    for file in theirs:
        file.write_bytes(bytes(2 * table.size))
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    (directory.path / f"{'b' * 32}.safetensors").symlink_to(target)
    (directory.path / f"{'c' * 32}.safetensors").mkdir()
    other = HiddenTable(backbone, *(tensor.flip(0) for tensor in examples))
    directory.fill(other, "train", track)
    assert not directory.has(table)
    assert all(file.stat().st_size == 2 * table.size for file in theirs)
    assert target.read_bytes() == b"theirs"
    assert (directory.path / f"{'c' * 32}.safetensors").is_dir()


@pytest.mark.parametrize("suffix", [".part", ".journal", ".lock"])
def test_a_link_in_place_of_an_own_file_is_not_followed(table, directory, tmp_path, suffix):
    directory.make()
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    (directory.path / f"{table.key}{suffix}").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        directory.fill(table, "train", track)
    assert target.read_bytes() == b"theirs"


def test_a_directory_without_the_mark_is_somebody_elses(table, directory):
    directory.path.mkdir(parents=True)
    (directory.path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files of yours"):
        directory.fill(table, "train", track)
    assert [file.name for file in directory.path.iterdir()] == ["thesis.txt"]


def test_unfinished_tables_make_room_unless_they_are_being_written(
    backbone, examples, table, directory
):
    other = HiddenTable(backbone, *(tensor.flip(0) for tensor in examples))
    directory.bound = table.size + table.size // 2
    with pytest.raises(KeyboardInterrupt):
        directory.fill(other, "train", killed_after(1))
    with FileLock(directory.path / f"{other.key}.lock"):
        directory.fill(table, "train", track)
    assert {f"{other.key}.part", f"{other.key}.journal"} < set(all_files(directory))
    (directory.path / f"{table.key}.safetensors").unlink()
    directory.fill(table, "train", track)
    assert list(all_files(directory)) == [f"{table.key}.safetensors"]


def test_locks_of_tables_that_are_gone_go_too(table, directory):
    directory.make()
    gone, held = (directory.path / f"{letter * 32}.lock" for letter in "de")
    (directory.path / f"{'d' * 32}.journal").touch()
    gone.touch()
    with FileLock(held):
        directory.fill(table, "train", track)
        assert held.exists()
    assert not gone.exists()
    assert not (directory.path / f"{'d' * 32}.journal").exists()


def build_in_another_process(directory, results, marks):
    torch.set_num_threads(1)
    config = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 40}
    from transformers import GPT2Config

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config)).eval()
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(40, (30, 32), generator=stream)

    def marking(blocks, total, before):
        marks.put(os.getpid())
        yield from blocks

    table = HiddenTable(Backbone(model), ids, torch.full((30,), 32))
    TableDirectory(Path(directory), 2**20).fill(table, "train", marking)
    results.put(float(table.values.double().sum()))


@pytest.mark.long
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
