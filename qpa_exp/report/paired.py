"""Two settings seed by seed: the test, what so many seeds can see, and the result in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class PairedTest:
    """A control against the trained circuit: Student's t on paired differences of logarithms.

    Every change is in percent of the metric with the trained circuit; above 0 the control's is
    higher.

    Attributes:
        n: seeds that both have, at least two.
        change: the mean change.
        low: lower end of its 95 % interval.
        high: its upper end.
        p: of the two-sided test that there is no change.
        effect: Hedges' g of the paired differences: their mean over their standard deviation,
            times 1 - 3 / (4 n - 5), which takes away the bias of few seeds.
        equal_within: the two are equal within this change by two one-sided tests at 5 %: the end
            of the 90 % interval that is further from 0.
        detectable: the smallest change that so many seeds with this scatter show in four of five
            studies (power 0.8, two-sided at 5 %).
    """

    n: int
    change: float
    low: float
    high: float
    p: float
    effect: float
    equal_within: float
    detectable: float


def paired_test(trained: pd.Series, control: pd.Series) -> PairedTest | None:
    """Compare the figures of the seeds that both have.

    Args:
        trained: positive figures, with the seeds as their index.
        control: the same of the control.

    Returns:
        None where they share fewer than two seeds.

    Examples:
        >>> trained = pd.Series({1: 100.0, 2: 110.0, 3: 90.0})
        >>> found = paired_test(trained, trained * pd.Series({1: 1.02, 2: 1.03, 3: 1.01}))
        >>> f"{found.change:.1f} % ({found.low:.1f} to {found.high:.1f})"
        '2.0 % (-0.5 to 4.5)'
    """
    both = pd.concat([trained, control], axis=1, join="inner").dropna().to_numpy(float)
    difference = np.diff(np.log(both))[:, 0]
    n = len(difference)
    if n < 2:
        return None
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    error = sd / math.sqrt(n)
    half = error * float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    one_sided = error * float(stats.t.ppf(1 - LEVEL, n - 1))
    statistic = abs(mean) / error if error else math.inf
    return PairedTest(
        n=n,
        change=percent(mean),
        low=percent(mean - half),
        high=percent(mean + half),
        p=float(2 * stats.t.sf(statistic, n - 1)) if mean else 1.0,
        effect=mean / sd * (1 - 3 / (4 * n - 5)) if sd else math.nan,
        equal_within=max(percent(mean + one_sided), -percent(mean - one_sided)),
        detectable=percent(sd * smallest_effect(n)),
    )


def smallest_effect(n: int) -> float:
    """Give the mean over the standard deviation that a paired test on n seeds finds with power 0.8.

    It is exact, by the noncentral t distribution; n is at least 2.

    Examples:
        >>> [round(smallest_effect(n), 2) for n in (3, 8)]
        [3.26, 1.16]
    """
    critical = float(stats.t.ppf(1 - LEVEL / 2, n - 1))

    def missing(effect: float) -> float:
        shift = effect * math.sqrt(n)
        return float(stats.nct.sf(critical, n - 1, shift) - POWER)

    return float(optimize.brentq(missing, 0.01, 60 / math.sqrt(n)))


def percent(logarithm: float) -> float:
    """Return the change in percent of which this is the logarithm."""
    return 100 * math.expm1(min(logarithm, 700.0))  # a double ends soon after


def holm(p: list[float]) -> list[float]:
    """Return the p values as Holm adjusts them for so many tests.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    times = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(times * np.array(p)[order]).clip(max=1).round(12)
    return adjusted.tolist()


def verdict(test: PairedTest, p: float, *, smaller_is_better: bool = True) -> str:
    """Return the result in words.

    Args:
        test: the control's.
        p: its adjusted p value.
        smaller_is_better: whether the metric is.
    """
    if p >= LEVEL:
        return f"no difference seen; equal within {test.equal_within:.2g} %"
    worse = (test.change > 0) == smaller_is_better
    return f"the control is {'worse' if worse else 'better'} by {abs(test.change):.2g} %"
