"""A run goes on for longer, stops early, or starts from what another one has trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from saved_weights import same, weights

from qpa_exp.__main__ import main
from qpa_exp.cli import compose_whole
from qpa_exp.config import Config
from qpa_exp.errors import InputError
from qpa_exp.runs import directory
from qpa_exp.runs.longer import MAY_CHANGE
from qpa_exp.runs.train import resume, run
from qpa_exp.sweeps.run_name import leaves, run_name

Configure = Callable[..., Config]
CrashesAt = Callable[[int], AbstractContextManager[None]]

BRIEF = (
    "optim.schedule=constant", "peft.lora_dropout=0.2", "trainer.limit_eval_batches=1",
    "data.batch_size=16",
)  # fmt: skip


def with_trainer(config: Config, **changed: object) -> Config:
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **changed))


# --- longer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "few", "more"),
    [
        ("max_epochs", 1, 2),
        pytest.param("max_steps", 3, 5, marks=pytest.mark.long),  # in the middle of an epoch
    ],
)
def test_a_complete_run_that_goes_on_is_one_that_was_to_be_longer(
    configure: Configure, tmp_path: Path, key: str, few: int, more: int
) -> None:
    short = run(configure(*BRIEF, f"trainer.{key}={few}"), tmp_path / "short")
    whole = run(configure(*BRIEF, f"trainer.{key}={more}"), tmp_path / "whole")
    config = directory.read_config(tmp_path / "short")
    longer = resume(tmp_path / "short", with_trainer(config, **{key: more}))
    assert same(tmp_path / "short", tmp_path / "whole")
    figures = ("perplexity", "steps", "epochs", "kept_step", "validation_perplexity")
    assert [longer[name] for name in figures] == [whole[name] for name in figures]
    curves = [directory.read_curve(tmp_path / d, "train/loss") for d in ("short", "whole")]
    assert curves[0] == curves[1]
    assert getattr(directory.read_config(tmp_path / "short").trainer, key) == more

    (before,) = (tmp_path / "short" / "earlier").iterdir()  # a run's directory itself
    assert directory.read_metrics(before) == short
    assert directory.read_config(before) == config
    assert weights(before).keys() == weights(tmp_path / "short").keys()


def test_what_becomes_of_the_schedule_is_said(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(*BRIEF, "optim.schedule=linear", "trainer.max_steps=2")
    run(config, tmp_path)
    with caplog.at_level("INFO"):
        resume(tmp_path, with_trainer(config, max_steps=4))
    assert (
        "optim.schedule=linear now ends at step 4: the learning rate goes on from 0.0005, 0.0025; "
        "it was 0, 0."
    ) in caplog.text
    rates = directory.read_curve(tmp_path, "lr-AdamW/others")
    assert rates == ([0, 1, 2, 3], pytest.approx([5e-3, 2.5e-3, 2.5e-3, 1.25e-3]))


def test_what_may_not_change_is_one_sentence(
    configure: Configure, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    place = tmp_path / "run"
    run(configure(*BRIEF, "trainer.max_steps=2"), place)
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*")}

    def refused(*changes: str) -> str:
        return refusal(main, ["resume=run", *changes], tmp_path)

    assert "optim.lr=0.1 cannot change when a run goes on" in refused("optim.lr=0.1")
    assert "init_from=run" in refused("optim.lr=0.1")
    assert "has trained for 2 steps" in refused("trainer.max_steps=1")
    assert "has trained for 2 steps" in refused("logger.name=tensorboard")
    assert "logger=wandb cannot change" in refused("logger=wandb")
    assert "trainer.max_epochs=x has the wrong type" in refused("trainer.max_epochs=x")
    assert "trainer.max_epoch is not a key" in refused("trainer.max_epoch=2")
    assert {file: file.stat().st_mtime_ns for file in place.rglob("*")} == before
    place.rename(tmp_path / "lora-tuned-0123456789ab")
    named = refusal(main, ["resume=lora-tuned-0123456789ab", "trainer.max_steps=4"], tmp_path)
    assert "is a run of a sweep" in named
    assert set(MAY_CHANGE) <= set(leaves())


@pytest.mark.parametrize("killed_at", ["metrics.json", "curves.png", "config.yaml"])
def test_a_kill_while_results_are_set_aside_loses_none(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    place = tmp_path / "run"
    run(configure(*BRIEF, "trainer.max_steps=2"), place)
    trained, config = weights(place), directory.read_config(place)
    longer = with_trainer(config, max_steps=3)
    proper, left = Path.replace, []

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == killed_at and not left:
            left.append(target)
            raise KeyboardInterrupt
        return proper(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        resume(place, longer)
    assert left
    if directory.state_of(place) is directory.State.complete:
        assert weights(place).keys() == trained.keys()
    assert resume(place, longer)["steps"] == 3
    (before,) = (place / "earlier").iterdir()
    assert directory.state_of(before) is directory.State.complete
    for name, tensor in weights(before).items():
        assert (tensor == trained[name]).all()


# --- stopping early ---------------------------------------------------------------------------


@pytest.fixture
def worsening(configure: Configure, text_dir: Path, tmp_path: Path) -> Callable[..., Config]:
    """A run whose validation rises, after every step of up to eight."""
    place = tmp_path / "text"
    place.mkdir()
    (place / "train.txt").write_bytes((text_dir / "train.txt").read_bytes())
    for split in ("validation", "test"):
        (place / f"{split}.txt").write_text("%%% === ### @@@ &&& ^^^ " * 20, encoding="utf-8")
    return lambda *more: configure(
        f"data.path={place}", "qpa=off", "qpa.n_mlp=null", "trainer.max_steps=8",
        "trainer.validate_every_n_steps=1", "trainer.patience=3", *BRIEF, *more,
    )  # fmt: skip


def test_a_run_stops_where_validation_does_not_get_better(
    worsening: Callable[..., Config],
    tmp_path: Path,
    crashes_at: CrashesAt,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(worsening(), tmp_path / "whole")
    assert (found["steps"], found["kept_step"], found["stopped_early"]) == (4, 1, True)
    assert "stopped" in capsys.readouterr().out
    with crashes_at(3):
        run(worsening("trainer.checkpoint_every_n_steps=2"), tmp_path / "killed")
    assert resume(tmp_path / "killed")["steps"] == 4
    assert same(tmp_path / "whole", tmp_path / "killed")

    (tmp_path / "killed" / "metrics.json").unlink()  # as if killed before it was written
    again = resume(tmp_path / "killed")
    assert (again["steps"], again["perplexity"]) == (4, found["perplexity"])

    for changed in ({"max_steps": 9}, {"patience": 2}):
        with pytest.raises(InputError, match=r"give a trainer\.patience of more than 3"):
            resume(tmp_path / "whole", with_trainer(worsening(), **changed))
    longer = resume(tmp_path / "whole", with_trainer(worsening(), patience=5))
    assert (longer["steps"], longer["stopped_early"]) == (6, True)


# --- from another run's weights -----------------------------------------------------------------


@pytest.mark.parametrize("qpa", ["tuned", "off"])
def test_a_run_starts_from_the_weights_of_another(
    configure: Configure, tmp_path: Path, crashes_at: CrashesAt, qpa: str
) -> None:
    brief = (*BRIEF, f"qpa={qpa}", "trainer.max_steps=2", "trainer.validate_every_n_steps=2")
    first = run(configure(*brief), tmp_path / "first")
    saved = directory.trained(tmp_path / "first", configure(f"qpa={qpa}"))
    for source in (tmp_path / "first", saved):
        place = tmp_path / f"from {source.name}"
        config = configure(*brief, f"init_from={source}")
        found = run(config, place)
        assert found["init_from"] == str(source)
        _, validated = directory.read_curve(place, "validation/loss")
        _, before = directory.read_curve(tmp_path / "first", "validation/loss")
        assert validated[0] == before[-1] != before[0]
    assert found["perplexity"] != first["perplexity"]
    assert same(tmp_path / "from first", place)
    assert not same(tmp_path / "first", place)

    crashed = dataclasses.replace(config, init_from=str(tmp_path / "moved"))
    (tmp_path / "first").rename(tmp_path / "moved")
    with crashes_at(1):
        run(with_trainer(crashed, checkpoint_every_n_steps=1), tmp_path / "killed")
    (tmp_path / "moved").rename(tmp_path / "gone")
    resume(tmp_path / "killed")
    assert same(tmp_path / "killed", place)


def test_weights_that_do_not_fit_are_one_sentence(configure: Configure, tmp_path: Path) -> None:
    run(configure(*BRIEF, "trainer.max_steps=1"), tmp_path / "first")
    run(configure(*BRIEF, "trainer.max_steps=1", "qpa=off"), tmp_path / "lora")
    (tmp_path / "empty").mkdir()

    def refused(*more: str, source: str = "first") -> str:
        config = configure(*BRIEF, *more, f"init_from={tmp_path / source}")
        with pytest.raises(InputError) as caught:
            run(config, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "qpa.n_layers is 8 there and 4 here" in refused("qpa.n_layers=4")
    assert "qpa.seed is 2025 there and 1 here" in refused("seed=1")
    assert "peft.r is 4 there and 2 here" in refused("peft.r=2", "peft.lora_alpha=8")
    assert "holds a generator, and this run trains none" in refused("qpa=off")
    assert "peft.r is 4 there and 2 here" in refused(
        "qpa=off", "peft.r=2", "peft.lora_alpha=8", source="lora"
    )
    assert "holds no generator" in refused(source="lora")
    assert "is neither a run nor" in refused(source="empty")
    assert "is neither a run nor" in refused(source="none")


def test_a_run_is_named_after_the_weights_that_it_starts_from(
    configure: Configure, tmp_path: Path
) -> None:
    for name, steps in (("one", 1), ("two", 2)):
        run(configure(*BRIEF, f"trainer.max_steps={steps}"), tmp_path / name)
    (tmp_path / "one").rename(tmp_path / "other")
    names = [run_name(configure(f"init_from={tmp_path / place}")) for place in ("other", "two")]
    (tmp_path / "other").rename(tmp_path / "one")
    assert run_name(configure(f"init_from={tmp_path}/one")) == names[0] != names[1]
    assert run_name(configure()) not in names
    _, composed = compose_whole([f"init_from={tmp_path}/one/generator"])
    assert composed.hydra.run.dir.startswith("outputs/tiny-lora-tuned-from-one/")
