"""The same name is the same run, and nothing else."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpa_exp.config import Config
from qpa_exp.registry import dotted, read_key
from qpa_exp.sweeps import run_name as module
from qpa_exp.sweeps.run_name import leaves, relevant, run_name
from qpa_exp.sweeps.without_effect import WITHOUT_EFFECT

Configure = Callable[..., Config]


@pytest.mark.parametrize(
    "change",
    [
        "qpa.n_mlp=32", "seed=1", "optim.lr=1e-3", "peft.r=2", "data.max_length=8", "qpa=paper",
        "trainer.max_steps=3", "data.layout=lines", "trainer.gradient_variance_starts=2",
    ],
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_name(configure: Configure, change: str) -> None:
    assert run_name(configure()) != run_name(configure(change))


@pytest.mark.parametrize(
    "change",
    [
        "logger=tensorboard", "logger=wandb", "trainer.progress_bar=true",
        "model.recipe.batch_size=7",  # data.batch_size is given, which refers to it
    ],
)  # fmt: skip
def test_what_does_not_change_them_leaves_it(configure: Configure, change: str) -> None:
    assert run_name(configure()) == run_name(configure(change))


def test_a_key_that_came_later_leaves_the_names_of_before(configure: Configure) -> None:
    before = relevant(configure("trainer.keep=last"))
    assert "trainer.keep" not in before
    assert relevant(configure()) == before | {"trainer.keep": "best"}


@pytest.mark.parametrize("key", leaves())
def test_every_key_of_the_schema_is_in_the_name_or_in_the_list_of_those_without_effect(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "weights_sha256", lambda place: place)
    config = Config()
    changed = copy.deepcopy(config)
    *groups, name = key.split(".")
    group = read_key(changed, ".".join(groups)) if groups else changed
    setattr(group, name, "text" if key == "data.name" else another(read_key(config, key)))
    names = {run_name(c, reads_text=False) for c in (config, changed)}
    assert (len(names) == 1) == any(f"{key}.".startswith(f"{part}.") for part in WITHOUT_EFFECT)


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, 1]
    if isinstance(value, dict):
        return {**value, "other": 1}
    return f"other_{value}"


def test_what_is_listed_as_without_effect_is_a_key() -> None:
    assert set(WITHOUT_EFFECT) <= {key for key, _ in dotted(Config())}


def test_without_a_generator_its_keys_have_no_part(configure: Configure) -> None:
    one = configure("qpa=off")
    other = copy.deepcopy(one)
    other.qpa.n_mlp = 16
    assert run_name(one) == run_name(other)
    assert run_name(one).startswith("lora-off-")


def test_the_text_counts_and_not_where_it_lies(configure: Configure, tmp_path: Path) -> None:
    def named(directory: str, text: str) -> str:
        (tmp_path / directory).mkdir()
        for split in ("train", "validation", "test"):
            (tmp_path / directory / f"{split}.txt").write_text(text * 50)
        return run_name(configure(f"data.path={tmp_path / directory}"))

    one, same, other = named("a", "a text\n"), named("b", "a text\n"), named("c", "another\n")
    assert one == same != other


def test_the_model_s_files_count_and_not_where_they_lie(
    configure: Configure, small_model_dir: Path, tmp_path: Path
) -> None:
    def named(directory: str, change: bytes = b"") -> str:
        place = shutil.copytree(small_model_dir, tmp_path / directory)
        with (place / "model.safetensors").open("r+b") as weights:
            weights.seek(-len(change), 2)
            weights.write(change)  # of the same size
        return run_name(configure(f"model.name_or_path={place}"))

    assert named("a") == named("b") == run_name(configure())
    assert named("c", b"abc") != named("d", b"abd")


def test_another_version_of_the_results_is_another_run(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_name(configure())
    monkeypatch.setattr(module, "RESULTS_VERSION", -1)
    assert run_name(configure()) != before
