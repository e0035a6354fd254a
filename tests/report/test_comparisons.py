"""Means, choices and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qpa_exp.report.collect import collect
from qpa_exp.report.comparisons import aggregate, comparisons, digits, pareto
from qpa_exp.report.tables import differences, protocol_differences
from qpa_exp.task import TASKS

# Student's t for 95 %, two-sided, from a printed table: 2, 3 and 4 degrees of freedom.
T = {2: 4.303, 3: 3.182, 4: 2.776}

LORA = ["qpa=off", "peft.r=4"]


@pytest.fixture
def runs_of(make_run: Callable[..., Path], tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """``runs_of((overrides, seed, perplexity, more metrics), ...)`` as a table."""

    def table(*specs: tuple[list[str], int, float, dict[str, object]]) -> pd.DataFrame:
        for i, (overrides, seed, perplexity, more) in enumerate(specs):
            make_run(tmp_path / str(i), *overrides, f"seed={seed}", perplexity=perplexity, **more)
        (collected,) = collect([str(tmp_path)])
        return collected.runs

    return table


def test_settings_are_means_over_their_seeds(runs_of: Callable[..., pd.DataFrame]) -> None:
    runs = runs_of(
        (LORA, 1, 100.0, {}), (LORA, 2, 104.0, {}), (LORA, 3, 111.0, {}),
        (["qpa=off", "peft.r=8"], 1, 90.0, {}),
    )  # fmt: skip
    table = aggregate(runs).sort_values("peft.r")
    assert list(table["n"]) == [3, 1]
    assert table["perplexity"].tolist() == pytest.approx([105.0, 90.0])
    assert table["perplexity_std"].iloc[0] == pytest.approx(np.std([100, 104, 111], ddof=1))
    assert math.isnan(table["perplexity_std"].iloc[1])


@pytest.mark.parametrize(
    ("value", "count", "text"),
    [
        (9.96, 2, "10"), (9.94, 2, "9.9"), (999.96, 4, "1,000"), (999.94, 4, "999.9"),
        (10_760.4, 4, "10,760"), (2311.2, 2, "2,311"), (22.9, 4, "22.90"), (-999.96, 4, "-1,000"),
    ],
)  # fmt: skip
def test_numbers_have_so_many_digits_and_no_bare_point(value: float, count: int, text: str) -> None:
    assert digits(value, count) == text


def test_a_comparison_pairs_the_seeds_and_has_students_interval(
    runs_of: Callable[..., pd.DataFrame],
) -> None:
    small = {"trainable_params": 500}
    pairs = [(1, 100.0, 99.0), (2, 120.0, 117.0), (3, 90.0, 90.5), (4, 105.0, 103.0)]
    runs = runs_of(
        *[(LORA, seed, one, {}) for seed, one, _ in pairs],
        *[(["qpa=tuned"], seed, two, small) for seed, _, two in pairs],
    )
    (found,) = comparisons(runs)
    logs = np.log([two / one for _, one, two in pairs])
    half = T[3] * logs.std(ddof=1) / 2
    assert found.paired
    assert found.n == (4, 4)
    assert found.share == 0.5
    assert found.change == pytest.approx(100 * math.expm1(logs.mean()))
    assert found.low == pytest.approx(100 * math.expm1(logs.mean() - half), rel=1e-3)
    assert found.high == pytest.approx(100 * math.expm1(logs.mean() + half), rel=1e-3)
    sentence = found.sentence()
    assert "50.00 % of the parameters of LoRA (r = 4) (500 of 1,000)" in sentence
    assert f"{abs(found.change):.2f} % lower perplexity" in sentence
    assert "4 seeds, paired" in sentence


def test_other_seeds_are_not_paired_and_one_run_has_no_interval(
    runs_of: Callable[..., pd.DataFrame],
) -> None:
    small = {"trainable_params": 500}
    runs = runs_of(
        (LORA, 1, 100.0, {}), (LORA, 2, 104.0, {}),
        (["qpa=tuned"], 3, 99.0, small), (["qpa=tuned"], 4, 98.0, small),
        (["qpa=off", "peft=dora"], 1, 100.0, {}), (["qpa=tuned", "peft=dora"], 1, 99.0, small),
    )  # fmt: skip
    by_method = {c.first["peft.method"]: c for c in comparisons(runs)}
    assert not by_method["lora"].paired
    assert by_method["lora"].low < by_method["lora"].change < by_method["lora"].high
    assert math.isnan(by_method["dora"].low)
    assert "how far runs scatter has not been measured" in by_method["dora"].sentence()


@pytest.mark.parametrize("seeds", [(1, 2), (3, 4)])
def test_runs_that_do_not_scatter_have_an_interval_of_no_width(
    runs_of: Callable[..., pd.DataFrame], seeds: tuple[int, int]
) -> None:
    runs = runs_of(
        *[(LORA, seed, 100.0, {}) for seed in (1, 2)],
        *[(["qpa=tuned"], seed, 99.0, {"trainable_params": 500}) for seed in seeds],
    )
    (found,) = comparisons(runs)
    assert [found.low, found.change, found.high] == pytest.approx([-1.0] * 3)


def test_welchs_interval_is_scipys(runs_of: Callable[..., pd.DataFrame]) -> None:
    one, two = [100.0, 104.0, 98.0], [99.0, 98.5]
    runs = runs_of(
        *[(LORA, seed, value, {}) for seed, value in enumerate(one)],
        *[(["qpa=tuned"], 9 + i, v, {"trainable_params": 500}) for i, v in enumerate(two)],
    )
    (found,) = comparisons(runs)
    theirs = stats.ttest_ind(np.log(two), np.log(one), equal_var=False).confidence_interval(0.95)
    expected = [100 * math.expm1(theirs.low), 100 * math.expm1(theirs.high)]
    assert [found.low, found.high] == pytest.approx(expected)


def test_the_setting_is_chosen_by_validation_and_never_by_the_test_split(
    runs_of: Callable[..., pd.DataFrame],
) -> None:
    small = {"trainable_params": 500}
    runs = runs_of(
        (LORA, 1, 100.0, {"validation": 80.0}),
        (["qpa.n_mlp=16"], 1, 70.0, {**small, "validation": 90.0}),
        (["qpa.n_mlp=32"], 1, 95.0, {**small, "validation": 85.0}),
        # Better, but it has more parameters than LoRA; and another rank.
        (["qpa.n_mlp=64"], 1, 10.0, {"trainable_params": 5000, "validation": 10.0}),
        (["qpa.n_mlp=16", "peft.r=8"], 1, 10.0, {**small, "validation": 10.0}),
        # No circuit is trained there; and LoRA at a rate that is worse for it.
        (["qpa.n_mlp=16", "qpa.ansatz=frozen"], 1, 10.0, {**small, "validation": 10.0}),
        ([*LORA, "optim.lr=1"], 1, 10.0, {"validation": 200.0}),
    )
    (found,) = comparisons(runs)
    assert found.first["perplexity"] == 100.0
    assert found.second["qpa.n_mlp"] == 32
    assert found.candidates == 2
    assert "Chosen from 2 settings by the lowest validation perplexity" in found.sentence()


points = st.lists(
    st.tuples(st.integers(1, 20), st.integers(1, 20).map(float)), min_size=1, max_size=20
)


@given(points)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, float]]) -> None:
    table = pd.DataFrame(points, columns=["trainable_params", "perplexity"])
    front = pareto(table, TASKS["causal_lm"].ranked_by())
    expected = {
        (x, y)
        for x, y in points
        if not any((a <= x and b <= y) and (a, b) != (x, y) for a, b in points)
    }
    assert set(front[["trainable_params", "perplexity"]].itertuples(index=False, name=None)) == (
        expected
    )


def test_a_metric_that_grows_is_best_where_it_is_largest(
    runs_of: Callable[..., pd.DataFrame],
) -> None:
    def accurate(accuracy: float, validation: float, size: int) -> dict[str, object]:
        return {
            "accuracy": accuracy, "validation": validation, "trainable_params": size,
            "perplexity_padded": None, "metric": "accuracy",
        }  # fmt: skip

    task = ["task=seq_cls", "data=labelled", "data.path=x.csv", "peft.target_modules=[c_attn]"]
    runs = runs_of(
        ([*task, *LORA], 1, 0.0, accurate(0.80, 0.81, 1000)),
        ([*task, "qpa.n_mlp=16"], 1, 0.0, accurate(0.84, 0.70, 500)),
        ([*task, "qpa.n_mlp=32"], 1, 0.0, accurate(0.82, 0.90, 600)),
    )
    (found,) = comparisons(runs)
    assert found.second["qpa.n_mlp"] == 32
    assert "2.50 % higher accuracy (0.8200 against 0.8000;" in found.sentence()
    assert "Chosen from 2 settings by the highest validation accuracy" in found.sentence()
    front = pareto(aggregate(runs), found.metric)
    assert front["accuracy"].tolist() == [0.84]


def test_what_differs_from_the_paper_is_said(runs_of: Callable[..., pd.DataFrame]) -> None:
    paper = ["model=gpt2", "data=wikitext2", "qpa=paper"]
    ours = ["model=gpt2", "data=wikitext2", "data.max_length=64"]
    runs = runs_of((paper, 1, 30.0, {}), (ours, 1, 30.0, {}))
    papers, other = runs[runs["qpa.variant"] == "paper"], runs[runs["qpa.variant"] == "tuned"]
    assert differences(papers) == []
    assert protocol_differences(papers.iloc[0]) == []
    assert protocol_differences(other.iloc[0]) == [
        "data.max_length=64", "qpa.variant=tuned",
    ]  # fmt: skip
    assert differences(runs)[0] == "data.max_length is 64; the paper's is 512."
