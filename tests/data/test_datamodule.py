from __future__ import annotations

import types
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from qpa_exp.config import DataConfig
from qpa_exp.data.datamodule import ShuffledBatches, TextDataModule, epoch_order
from qpa_exp.errors import InputError

LINES = 11
BATCH = 2
STEPS = 6  # batches an epoch: ceil(11 / 2)


@pytest.fixture
def files(tmp_path):
    for split in ("train", "validation", "test"):
        text = "".join(f"{split} {i}\n" if i % 4 else "\n" for i in range(LINES))
        (tmp_path / f"{split}.txt").write_text(text)
    return tmp_path


def make(files, tokenizer, seed=0, **fields) -> TextDataModule:
    settings = {"layout": "lines", "max_length": 8, "batch_size": BATCH, "eval_batch_size": 4}
    config = DataConfig(name="ptb", path=str(files), **(settings | fields))
    return TextDataModule(config, tokenizer, seed=seed)


def rows(batches) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in batches]


# --- contents --------------------------------------------------------------------------------


def test_batches_and_counts(files, tokenizer):
    data = make(files, tokenizer)
    data.setup()
    batches = list(data.test_dataloader())
    assert [b["input_ids"].shape for b in batches] == [(4, 8), (4, 8), (3, 8)]
    ids = torch.cat([b["input_ids"] for b in batches])
    real = torch.cat([b["attention_mask"] for b in batches])
    assert real.dtype == ids.dtype == torch.int64
    assert ids.equal(data.examples["test"].input_ids)
    assert real.sum(1).equal(data.examples["test"].lengths)
    assert real[0].sum() == 0
    lines = [f"test {i}" if i % 4 else "" for i in range(LINES)]
    tokens = sum(map(len, tokenizer(lines)["input_ids"]))
    assert len(data.examples["test"]) == LINES
    assert int(real.sum()) == tokens


def test_setup_twice_reads_once(files, tokenizer):
    data = make(files, tokenizer)
    data.prepare_data()
    data.setup("fit")
    corpus, examples = data.corpus, data.examples
    for file in files.iterdir():
        file.unlink()
    data.setup("test")
    assert data.corpus is corpus
    assert data.examples is examples


def test_blocks_have_no_padding(files, tokenizer):
    data = make(files, tokenizer, layout="blocks")
    assert all(b["attention_mask"].all() for b in data.train_dataloader())
    assert data.examples["train"].lengths.eq(8).all()


def test_one_split_may_serve_twice(files, tokenizer):
    (files / "train.txt").unlink()
    data = make(files, tokenizer, train_split="valid")
    assert data.examples["train"] is data.examples["validation"]
    assert set(data.examples) == {"train", "validation", "test"}


def test_the_stride_is_of_what_is_measured_alone(files, tokenizer):
    settings = {"layout": "blocks", "stride": 3, "train_split": "validation"}
    data = make(files, tokenizer, **settings)
    side_by_side, overlapping = data.examples["train"], data.examples["validation"]
    assert side_by_side.context is None
    assert len(side_by_side) < len(overlapping)
    assert sum(int((b["labels"] != -100).sum()) for b in data.val_dataloader()) == (
        overlapping.size.tokens
    )


def test_blocks_are_joined_as_their_corpus_is_unless_told_otherwise(files, tokenizer):
    own, eos = (make(files, tokenizer, layout="blocks", join=join) for join in (None, "eos"))
    begin = [data.examples["test"].input_ids[0].tolist() for data in (own, eos)]
    assert tokenizer.decode(begin[0]).startswith("\ntest 1\n")  # ptb: a document is a line
    assert begin[1][0] == tokenizer.eos_token_id


def test_a_split_too_short_for_a_block_is_named(files, tokenizer):
    (files / "test.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"^The test split of .* has 1 tokens"):
        make(files, tokenizer, layout="blocks").setup()


# --- order -----------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(s, e): tuple(epoch_order(50, s, e).tolist()) for s in range(4) for e in range(4)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(orders.values())) == 16
    torch.manual_seed(1)
    assert tuple(epoch_order(50, 2, 3).tolist()) == orders[2, 3]


def test_loaders_leave_the_global_generator_alone(files, tokenizer):
    data = make(files, tokenizer)
    before = torch.get_rng_state()
    first = rows(data.train_dataloader())
    rows(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
    assert rows(make(files, tokenizer).train_dataloader()) == first
    assert rows(make(files, tokenizer, seed=1).train_dataloader()) != first


@pytest.mark.parametrize("n", [1, 3, 10, 12])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_training_rows(n, world_size):
    ranks = [ShuffledBatches(n, 2, 7, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [list(sampler) for sampler in ranks]
    shares = [list(chain(*b)) for b in batches]
    assert {len(b) for b in batches} == {len(s) for s in ranks} == {len(ranks[0])}
    assert len({len(share) for share in shares}) == 1
    given = [row for together in zip(*shares, strict=True) for row in together]
    order = epoch_order(n, 7, 0).tolist()
    assert given == (order * world_size)[: len(given)]
    assert len(given) < n + world_size


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_ranks_share_the_evaluation_rows_without_repeats(files, tokenizer, world_size):
    data, loaders = make(files, tokenizer), []
    for rank in range(world_size):
        data.trainer = types.SimpleNamespace(global_rank=rank, world_size=world_size)
        loaders.append(data.test_dataloader())
    shares = [list(chain(*loader.sampler)) for loader in loaders]
    assert [len(list(loader)) for loader in loaders] == [len(loader) for loader in loaders]
    assert sorted(chain(*shares)) == list(range(LINES))
    assert all(share == sorted(share) for share in shares)


def test_the_rank_is_the_attached_trainers(files, tokenizer):
    data = make(files, tokenizer)
    data.trainer = types.SimpleNamespace(global_rank=1, world_size=3)
    assert data.train_dataloader().sampler.rank == 1
    ids = torch.cat([b["input_ids"] for b in data.test_dataloader()])
    assert ids.equal(data.examples["test"].input_ids[1::3])


# --- resuming --------------------------------------------------------------------------------


def test_a_sampler_goes_on_where_its_state_says():
    sampler = ShuffledBatches(10, 3, 0)
    sampler.set_epoch(4)
    whole = list(sampler)
    iterator = iter(sampler)
    taken = [next(iterator), next(iterator)]
    state = sampler.state_dict()
    fresh = ShuffledBatches(10, 3, 0)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    fresh.set_epoch(4)
    assert taken + list(fresh) == whole
    assert list(fresh) == whole
    fresh.load_state_dict(state)
    fresh.set_epoch(5)
    sampler.set_epoch(5)
    assert list(fresh) == list(sampler)


@pytest.mark.parametrize("change", [{"n": 9}, {"batch_size": 4}, {"seed": 1}, {"world_size": 2}])
def test_a_state_of_other_data_is_refused(change):
    made = {"n": 10, "batch_size": 3, "seed": 0, "world_size": 1}
    state = ShuffledBatches(**made).state_dict()
    with pytest.raises(InputError, match="as it was configured"):
        ShuffledBatches(**(made | change)).load_state_dict(state)


class Recorder(pl.LightningModule):
    """One weight, and a note of every training row it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[list[int]]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch["input_ids"].tolist()))
        return (self.weight - batch["input_ids"].float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(data, directory, *, resume=None, every=None, **options) -> Recorder:
    callbacks = []
    if every is not None:
        callbacks.append(
            ModelCheckpoint(
                directory, "{step}", save_top_k=-1, every_n_train_steps=every, save_last=False
            )
        )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=every is not None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        default_root_dir=directory,
        **({"max_epochs": 3} | options),
    )
    module = Recorder()
    trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"limit_val_batches": 0},
        {},
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
        {"max_steps": 3 * STEPS - 1},
        {"accumulate_grad_batches": 2},
    ],
    ids=["train only", "validation each epoch", "validation by steps", "max_steps", "accumulation"],
)
def test_a_resumed_run_sees_the_rows_of_an_uninterrupted_one(files, tokenizer, tmp_path, options):
    whole = fit(make(files, tokenizer), tmp_path / "a", every=1, **options)
    batches = 3 * STEPS - (1 if "max_steps" in options else 0)
    assert len(whole.seen) == batches
    assert [epoch for epoch, _ in whole.seen] == [i // STEPS for i in range(batches)]
    assert whole.seen[:STEPS] != whole.seen[STEPS : 2 * STEPS]
    a_step = options.get("accumulate_grad_batches", 1)
    # In the middle of the second epoch, and in the third, its end and the next one's first batch.
    for step in {8 // a_step, 10 // a_step, 12 // a_step, 14 // a_step}:
        torch.manual_seed(step)
        checkpoint = tmp_path / "a" / f"step={step}.ckpt"
        resumed = fit(make(files, tokenizer), tmp_path / "b", resume=checkpoint, **options)
        assert resumed.seen == whole.seen[step * a_step :]
        assert resumed.weight.equal(whole.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_run_stopped_by_steps_goes_on(files, tokenizer, tmp_path):
    whole = fit(make(files, tokenizer), tmp_path / "a")
    stopped = fit(make(files, tokenizer), tmp_path / "b", every=4, max_steps=8)
    checkpoint = tmp_path / "b" / "step=8.ckpt"
    resumed = fit(make(files, tokenizer), tmp_path / "c", resume=checkpoint)
    assert stopped.seen + resumed.seen == whole.seen
    assert resumed.weight.equal(whole.weight)
    with pytest.raises(InputError, match="seed"):
        fit(make(files, tokenizer, seed=1), tmp_path / "d", resume=checkpoint)
