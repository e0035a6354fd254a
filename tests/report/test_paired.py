"""The trained circuit against its controls: the test, its power, and the table."""

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
from qpa_exp.report.paired import holm, paired_test, smallest_effect, verdict
from qpa_exp.report.tables import TABLES

FIGURES = st.lists(st.floats(10, 200), min_size=3, max_size=8)


@given(FIGURES, st.integers(0, 10**6))
def test_the_test_is_scipys_paired_t_on_logarithms(figures: list[float], seed: int) -> None:
    trained = pd.Series(figures)
    control = trained * np.exp(np.random.default_rng(seed).normal(0.01, 0.02, len(figures)))
    found = paired_test(trained, control)
    assert found is not None
    theirs = stats.ttest_rel(np.log(control), np.log(trained))
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.low == pytest.approx(100 * math.expm1(interval.low))
    assert found.high == pytest.approx(100 * math.expm1(interval.high))
    assert found.low < found.change < found.high
    one_sided = [
        stats.ttest_1samp(np.log(control / trained), bound, alternative=side).pvalue
        for bound, side in [
            (math.log1p(found.equal_within / 100), "less"),
            (math.log1p(-found.equal_within / 100), "greater"),
        ]
    ]
    assert max(one_sided) == pytest.approx(0.05)


def test_seeds_that_only_one_has_take_no_part() -> None:
    one = pd.Series({1: 100.0, 2: 110.0, 9: 1.0})
    found = paired_test(one, pd.Series({2: 111.0, 1: 103.0, 3: 500.0}))
    assert found is not None
    assert found.n == 2
    assert paired_test(one, pd.Series({1: 103.0})) is None


def test_the_power_is_that_of_drawn_studies() -> None:
    for n in (3, 8):
        drawn = np.random.default_rng(n).normal(smallest_effect(n), 1.0, (20_000, n))
        assert (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(
            0.8, abs=0.01
        )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_adjusted_p_values_keep_their_order_and_lie_between_theirs_and_bonferronis(
    p: list[float],
) -> None:
    adjusted = np.array(holm(p))
    assert (adjusted >= np.round(p, 12)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_the_table_pairs_a_circuit_with_the_controls_that_are_equal_in_all_else(
    make_run: Callable[..., Path], make_study: Callable[..., Path], tmp_path: Path
) -> None:
    paths = []
    for seed in (1, 2, 3):
        for window in (64, 128):
            for circuit, more in (
                ("qpa.ansatz=ry", 0.0),
                ("qpa.ansatz=frozen", 0.1 * seed),
                ("qpa.ansatz=none", 20.0 + seed),
                ("qpa=random", 30.0 + seed),
            ):
                keys = [circuit, f"qpa.window={window}", f"seed={seed}"]
                path = tmp_path / "-".join(keys)
                paths.append(make_run(path, *keys, perplexity=100.0 + seed + more))
    make_study(tmp_path / "study", paths, tables=["controls"])
    (collected,) = collect([str(tmp_path / "study")])
    rows = TABLES["controls"]("controls", collected.runs).rows
    assert len(rows) == 6  # two windows, three controls each
    assert set(rows["seeds"]) == {3}
    words = rows["verdict"].tolist()
    assert [w.startswith("no difference seen; equal within 0.") for w in words].count(True) == 2
    assert [w.startswith("the control is worse by 2") for w in words].count(True) == 2
    assert [w.startswith("the control is worse by 3") for w in words].count(True) == 2


def test_the_verdict_knows_which_way_is_better() -> None:
    found = paired_test(pd.Series([1.0, 1.0, 1.0]), pd.Series([1.10, 1.11, 1.12]))
    assert found is not None
    assert verdict(found, 0.01) == "the control is worse by 11 %"
    assert verdict(found, 0.01, smaller_is_better=False) == "the control is better by 11 %"
    assert verdict(found, 0.5).startswith("no difference seen; equal within 1")
