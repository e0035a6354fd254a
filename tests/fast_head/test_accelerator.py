"""Runs that compute the backbone once, or not at all, against runs of the whole model."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.fast_head import accelerator
from qpa_exp.fast_head.hidden_tables import Backbone, TableDirectory
from qpa_exp.generator.generator import Generator
from qpa_exp.runs import train as run_module
from qpa_exp.runs.directory import claim, note_cache, read_metrics
from qpa_exp.runs.module import AdapterModule
from qpa_exp.runs.train import build, resume, run

Configure = Callable[..., Config]

FIGURES = ("perplexity", "base_perplexity", "loss")


@pytest.fixture
def own_cache(tmp_path: Path) -> str:
    return f"data.cache_dir={tmp_path / 'cache'}"


@pytest.fixture
def the_long_way(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """A run of the whole model: all logits at once, as transformers and PEFT compute them."""

    def go(config: Config, directory: Path) -> dict:
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "accelerate", lambda task, *_: task)
            return run(config, directory)

    return go


def trained(directory: Path) -> dict[str, torch.Tensor]:
    (file,) = directory.glob("*/*.safetensors")
    return load_file(file)


def require_alike(directory: Path, other: Path, keys: tuple[str, ...] = FIGURES) -> None:
    ours, theirs = (read_metrics(d) for d in (directory, other))
    assert ours is not None
    assert theirs is not None
    for key in keys:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    weights, expected = trained(directory), trained(other)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert (weights[name] - value).abs().max() <= 2e-3 * value.abs().max() + 1e-4, name


@pytest.mark.parametrize(
    "more",
    [
        ["qpa=tuned"],
        ["qpa=off"],
        ["qpa=released", "peft=dora", "optim.lr=1e-4"],
        ["qpa=paper", "peft=prefix", "data.layout=lines", "optim.lr=1e-4"],
        pytest.param(["qpa=off", "peft=ffa", "optim.lr=1e-3"], marks=pytest.mark.long),
        ["qpa=off", "peft=vera", "peft.r=8"],
    ],
    ids=" ".join,
)
def test_the_short_way_leads_to_where_the_long_one_does(
    configure: Configure, own_cache: str, tmp_path: Path, the_long_way, more: list[str]
) -> None:
    config = configure(*more, own_cache, "trainer.max_steps=6", "data.cache=disk")
    the_long_way(configure(*more, "trainer.max_steps=6"), tmp_path / "long")
    run(config, tmp_path / "short")
    keys = (*FIGURES, "perplexity_padded") if "data.layout=lines" in more else FIGURES
    require_alike(tmp_path / "short", tmp_path / "long", keys)


@pytest.mark.long
@pytest.mark.parametrize(
    "mode", ["memory", *(pytest.param(m, marks=pytest.mark.long) for m in ("off", "auto"))]
)
def test_where_hidden_states_are_kept_changes_no_figure(
    configure: Configure, own_cache: str, tmp_path: Path, mode: str
) -> None:
    run(configure(own_cache, "data.cache=disk"), tmp_path / "disk")
    run(configure(own_cache, f"data.cache={mode}"), tmp_path / mode)
    require_alike(tmp_path / mode, tmp_path / "disk")


def test_kept_hidden_states_serve_every_run(
    configure: Configure, own_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configure(own_cache), tmp_path / "first")
    computed = []
    proper = Backbone.hidden

    def hidden(self: Backbone, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        computed.append(ids.numel())
        return proper(self, ids, mask)

    monkeypatch.setattr(Backbone, "hidden", hidden)
    run(configure(own_cache, "qpa=off", "seed=1"), tmp_path / "second")
    assert max(computed) == 1  # one token, for the shape


@pytest.mark.long
def test_a_run_of_less_than_an_epoch_keeps_nothing_and_reads_what_there_is(
    configure: Configure, own_cache: str, tmp_path: Path
) -> None:
    short = "trainer.max_steps=2"
    run(configure(own_cache, short), tmp_path / "a")
    assert not (tmp_path / "cache").exists()
    run(configure(own_cache), tmp_path / "b")
    run(configure(own_cache, short), tmp_path / "c")
    noted = [json.loads((tmp_path / n / "cache.json").read_text())["cache"] for n in "abc"]
    assert noted == ["off", "disk", "disk"]


def test_a_resumed_run_does_not_decide_again(
    configure: Configure, own_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(own_cache, "trainer.max_steps=6")
    run(config, tmp_path / "whole")
    proper = AdapterModule.training_step

    def crashing(self: AdapterModule, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.global_step == 5:
            raise RuntimeError("power cut")
        return proper(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterModule, "training_step", crashing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config, tmp_path / "crashed")
    run(configure(own_cache), tmp_path / "makes_the_tables")
    resume(tmp_path / "crashed")
    whole, crashed = trained(tmp_path / "whole"), trained(tmp_path / "crashed")
    assert all(torch.equal(whole[name], crashed[name]) for name in whole)


# --- what cannot be kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["data.cache=disk", "peft.target_modules=[c_attn]"], "give data.cache=off"),
        (["data.cache=memory", "data.cache_gib=1e-6"], "more than data.cache_gib=1e-06"),
        (["data.cache=disk", "data.cache_gib=1e-6"], "give a larger data.cache_gib"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(
    configure: Configure, own_cache: str, tmp_path: Path, more: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        run(configure(own_cache, *more), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


PLACES = {
    "a file": "{there}/file",
    "under a file": "{there}/file/cache",
    "a device": "/dev/null",
    "under what does not exist": "{there}/missing/cache",
    "a symlink loop": "{there}/loop",
    "a name that is too long": "{there}/" + "x" * 5000,
    "a path that is too long": "{there}" + "/x" * 5000,
    "a zero byte": "{there}/a\0b",
    "somebody else's directory": "{there}/theirs",
    "nobody's home": "~no_such_user/cache",
}


@pytest.mark.parametrize("mode", ["auto", "disk"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_place_where_nothing_can_be_kept_is_refused_before_a_run_begins(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: str
) -> None:
    there = tmp_path / "there"
    (there / "theirs" / "hidden_states").mkdir(parents=True)
    for file in (there / "file", there / "theirs" / "hidden_states" / "model.safetensors"):
        file.write_text("theirs")
    (there / "loop").symlink_to(there / "loop")
    monkeypatch.chdir(there)
    before = sorted(tmp_path.rglob("*"))
    config = configure(f"data.cache={mode}")
    config.data.cache_dir = place.format(there=there)
    with pytest.raises(InputError, match=r"data\.cache_dir") as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert sorted(tmp_path.rglob("*")) == before


def test_a_resumed_run_writes_to_no_place_that_its_config_names(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """Unless it is a cache of ours already: the config may be somebody else's."""
    own, victim = tmp_path / "own", tmp_path / "victim"
    victim.mkdir()
    monkeypatch.setenv("QPA_EXP_CACHE", str(own))
    for noted in ("cache.json", "no cache.json"):
        directory = tmp_path / noted
        claim(directory, configure(f"data.cache_dir={victim}"))
        if noted == "cache.json":
            note_cache(directory, "disk")
        with caplog.at_level("INFO", logger="qpa_exp"):
            resume(directory)
        assert caplog.text.count("is no cache of qpa_exp") == 1
        caplog.clear()
        assert list(victim.iterdir()) == []
    assert [file.name for file in own.iterdir()] == ["hidden_states"]
    TableDirectory(victim, 2**30).make()
    claim(tmp_path / "again", configure(f"data.cache_dir={victim}"))
    resume(tmp_path / "again")
    assert list(victim.glob("hidden_states/*.safetensors"))


# --- how far it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disk", "memory"])
def test_a_file_is_told_now_and_then_how_far_it_is(
    configure: Configure,
    own_cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
) -> None:
    clock = itertools.count(step=20.0)
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("qpa_exp.fast_head.hidden_tables._TOKENS_AT_A_TIME", 128)
    task = build(configure(own_cache, f"data.cache={mode}")).task
    with caplog.at_level("INFO", logger="qpa_exp"):
        task.prepare()
    lines = [line for line in caplog.messages if "of the train split" in line]
    lines = [line for line in lines if " to /" not in line]
    tokens = task.tables["train"].tokens
    assert len(lines) == tokens // 128 // 2 + 1
    assert re.search(r"train split: \d+ %, \d+ tokens a second, \d+:\d\d:\d\d left", lines[0])
    assert f"train split: {tokens:,} tokens in" in lines[-1]


def test_a_terminal_has_a_bar(
    configure: Configure, own_cache: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(accelerator, "Console", partial(Console, force_terminal=True, width=100))
    monkeypatch.setattr("qpa_exp.fast_head.hidden_tables._TOKENS_AT_A_TIME", 128)
    for shown in ("true", "false"):
        config = configure(own_cache, "data.cache=memory", f"trainer.progress_bar={shown}")
        build(config).task.prepare()
        err = capsys.readouterr().err
        assert ("hidden states, train" in err and "tokens/s" in err) == (shown == "true")


def test_auto_goes_without_what_cannot_be_kept(
    configure: Configure, own_cache: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="qpa_exp"):
        run(configure(own_cache, "data.cache_gib=1e-6"), tmp_path / "run")
    assert caplog.text.count("Hidden states are not kept") == 1
    assert not (tmp_path / "cache").exists()


def test_a_model_whose_logits_are_not_its_heads_is_computed_whole(
    configure: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accelerator, "find_final_logits", lambda *_: None)
    with caplog.at_level("INFO", logger="qpa_exp"):
        metrics = run(configure("trainer.max_steps=2"), tmp_path / "run")
    assert caplog.text.count("the whole model is computed") == 1
    assert math.isfinite(metrics["perplexity"])


# --- steps of several batches, other precisions, time -------------------------------------------


@pytest.mark.parametrize(
    ("targets", "clip"),
    [
        ("lm_head", "0.01"),
        ("c_attn", "null"),
        pytest.param("lm_head", "null", marks=pytest.mark.long),
        pytest.param("c_attn", "0.01", marks=pytest.mark.long),
    ],
)
def test_batches_are_gathered_before_they_go_through_the_generator(
    configure: Configure,
    tmp_path: Path,
    the_long_way,
    monkeypatch: pytest.MonkeyPatch,
    targets: str,
    clip: str,
) -> None:
    gathered = [
        "trainer.accumulate_grad_batches=2", "data.batch_size=2", "trainer.max_steps=5",
        f"peft.target_modules=[{targets}]", f"trainer.gradient_clip_val={clip}",
        "trainer.checkpoint_every_n_steps=100", "trainer.limit_eval_batches=1",
    ]  # fmt: skip
    config = configure(*gathered)
    with monkeypatch.context() as patch:  # as a bare loop would have it: a vector for each batch
        patch.setattr("qpa_exp.adapters.generated.GeneratedMethod.begin_step", lambda self: None)
        patch.setattr("qpa_exp.adapters.generated.GeneratedMethod.end_step", lambda self: None)
        the_long_way(config, tmp_path / "each")
    calls = []
    proper = Generator.forward

    def forward(self: Generator) -> torch.Tensor:
        calls.append(self.training and torch.is_grad_enabled())
        return proper(self)

    monkeypatch.setattr(Generator, "forward", forward)
    run(config, tmp_path / "together")
    assert sum(calls) == 5
    require_alike(tmp_path / "together", tmp_path / "each")


@pytest.mark.parametrize("peft", ["lora", pytest.param("prefix", marks=pytest.mark.long)])
def test_bf16_mixed_measures_what_float32_does(
    configure: Configure, own_cache: str, tmp_path: Path, peft: str
) -> None:
    more = [own_cache, f"peft={peft}", "trainer.max_steps=6", "optim.lr=1e-3"]
    exact = run(configure(*more), tmp_path / "exact")
    rough = run(configure(*more, "trainer.precision=bf16-mixed"), tmp_path / "rough")
    for key in FIGURES[:2]:
        assert rough[key] == pytest.approx(exact[key], rel=2e-3)


@pytest.mark.long
def test_weights_in_bfloat16_run_to_the_end(configure: Configure, tmp_path: Path) -> None:
    metrics = run(configure("model.dtype=bfloat16"), tmp_path / "run")
    assert metrics["perplexity"] < 0.9 * metrics["base_perplexity"]


@pytest.mark.long
def test_where_the_time_went_is_said(configure: Configure, own_cache: str, tmp_path: Path) -> None:
    cached = run(configure(own_cache), tmp_path / "cached")
    split = cached["time_split"]
    assert list(split) == ["backbone", "generator", "head", "other"]
    assert split["backbone"] == 0
    assert min(split["generator"], split["head"], split["other"]) > 0
    tokens = cached["tokens_per_second"] * sum(split.values())
    assert tokens == pytest.approx(2 * 16 * len(_train_rows(configure())), rel=1e-3)
    computed = run(configure("data.cache=off"), tmp_path / "computed")
    assert computed["time_split"]["backbone"] > 0


def _train_rows(config: Config) -> torch.Tensor:
    from qpa_exp.data.datamodule import TextDataModule
    from qpa_exp.lm.loading import load_tokenizer

    data = TextDataModule(config.data, load_tokenizer(config.model), config.seed)
    return data.examples["train"].input_ids


def test_a_generator_that_cannot_be_compiled_is_one_sentence(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nwas found")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(InputError, match=r"trainer\.compile=true: .* no C\+\+ compiler was found"):
        run(configure("trainer.compile=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
