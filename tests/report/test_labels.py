"""What settings are called."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.report.labels import named, words_of


def table(*labels: str, **more: object) -> pd.DataFrame:
    """Settings with these labels, each made as its label says."""
    rows = []
    for number, label in enumerate(labels):
        given = dict(word.split("=", 1) for word in label.split() if "=" in word)
        rows.append({
            "setting": str(number), "label": label, "peft.method": given.get("peft", "lora"),
            "qpa.variant": given.get("qpa", "tuned"), "qpa.ansatz": given.get("qpa.ansatz", "ry"),
            **more,
        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (
            ["qpa=off peft.r=4 optim.lr=0.1", "qpa=off peft.r=8 optim.lr=0.1",
             "peft=unilora qpa=off peft.options.theta_d_length=8192 optim.lr=0.1",
             "peft=unilora qpa=off peft.options.theta_d_length=2048 optim.lr=0.1",
             "qpa=tuned qpa.window=64 optim.lr=0.01", "qpa=tuned qpa.window=null optim.lr=0.01",
             "qpa=paper"],
            ["LoRA r = 4", "LoRA r = 8", "Uni-LoRA 8,192", "Uni-LoRA 2,048", "QPA window 64",
             "QPA window 128", "QPA, paper's equations"],
        ),
        (
            [f"qpa=tuned qpa.ansatz={name}" for name in ("ry", "frozen", "gaussian", "none")],
            ["trained circuit", "frozen circuit", "Gaussian numbers", "no circuit"],
        ),
        (["qpa.shots=20x", "qpa.shots=null"], ["20x shots", "exact"]),
        (["trainer.max_epochs=1", "trainer.max_epochs=2"], ["1 epoch", "2 epochs"]),
        (["run7", "another"], ["run7", "another"]),
        (["qpa=random peft.r=1", "qpa=tuned peft.r=1"], ["random features", "default"]),
        (
            ["qpa=random qpa.n_mlp=16", "qpa=random qpa.n_mlp=64", "qpa=tuned"],
            ["random features, n_mlp = 16", "random features, n_mlp = 64", "default"],
        ),
    ],
)  # fmt: skip
def test_names_are_words_that_tell_settings_apart(labels: list[str], names: list[str]) -> None:
    assert list(named(table(*labels, **{"qpa.window": 128}))) == names


def test_a_group_stands_before_the_names_of_its_settings() -> None:
    runs = table("qpa=tuned", "qpa=paper qpa.ansatz=ry", "qpa=paper qpa.ansatz=none")
    names = named(runs, {"the paper's": {"qpa.variant": "paper"}})
    assert list(names) == ["default", "the paper's: trained circuit", "the paper's: no circuit"]


KEY = st.sampled_from(["peft.r", "qpa.window", "optim.lr", "qpa.n_mlp", "data.train_split", "x.y"])


@given(st.lists(st.dictionaries(KEY, st.integers(1, 9), max_size=4), min_size=1, unique_by=str))
def test_different_settings_have_different_names(overrides: list[dict[str, int]]) -> None:
    labels = [" ".join(f"{k}={v}" for k, v in sorted(given.items())) for given in overrides]
    labels = list(dict.fromkeys(labels))
    assert len(set(named(table(*labels)))) == len(labels)


def test_a_key_without_words_of_its_own_is_its_last_part() -> None:
    assert words_of("trainer.some_key", "true") == "some key"
    assert words_of("trainer.some_key", "false") == "no some key"
    assert words_of("trainer.some_key", "7") == "some key = 7"
