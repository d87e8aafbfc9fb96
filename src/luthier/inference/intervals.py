"""Intervals for what is measured on a sample of rows. All are 95 %, and deterministic for a given seed.

Bootstrap intervals are percentile intervals (Efron, 1979) over rows, because the tokens of one row are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = Floats | npt.NDArray[np.int64]

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

FEWEST_PAIRS = 6
"""Fewer cannot be told from chance at 5 %: all n pairs agree in sign by chance with probability 2 ** (1 - n)."""

RESAMPLES = 10_000
FEWEST_RESAMPLES = 1_000
DRAWS = 20_000_000
"""Most draws of one interval: long files get fewer resamples, whose share of the interval's width is small there."""

BLOCK = 2_000_000
"""Draws that lie in memory at a time."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The interval of a share (Wilson, 1927), right near 0 and 1 too.

    Args:
        successes: how many of the n.
        n: how many were tried; with 0 the interval is (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def bootstrap_mean(values: Sequence[float] | Numbers, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean of `values` [n]; with one value both ends are that value. Raises ValueError on none."""
    array = np.asarray(values, dtype=np.float64)
    means = np.concatenate([array[rows].mean(axis=1) for rows in _resamples(len(array), seed)])
    return _ends(means)


def bootstrap_ratio(
    numerators: Sequence[float] | Numbers, denominators: Sequence[float] | Numbers, seed: int = 0
) -> tuple[float, float]:
    """The interval of sum(numerators) / sum(denominators), resampling the rows; for example NLL per token.

    Args:
        numerators: [n], one sum a row.
        denominators: [n], positive.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or (below <= 0).any():
        raise ValueError("one positive denominator for each numerator is needed")
    ratios = np.concatenate(
        [above[rows].sum(axis=1) / below[rows].sum(axis=1) for rows in _resamples(len(above), seed)]
    )
    return _ends(ratios)


def bootstrap_sum_of_ratios(parts: Sequence[tuple[Floats, Floats]], seed: int = 0) -> tuple[float, float]:
    """The interval of a sum of ratios as that of `bootstrap_ratio`, over the same rows; without the draws in which a denominator is 0.

    Args:
        parts: numerators and denominators, [n] each, none negative and of no part all 0.
    """
    drawn = []
    for rows in _resamples(len(parts[0][0]), seed):
        sums = [(above[rows].sum(axis=1), below[rows].sum(axis=1)) for above, below in parts]
        there = np.all([below > 0 for _, below in sums], axis=0)
        drawn.append(np.sum([above[there] / below[there] for above, below in sums], axis=0))
    return _ends(np.concatenate(drawn))


def paired_bootstrap(
    a: Sequence[float] | Numbers, b: Sequence[float] | Numbers, seed: int = 0
) -> tuple[float, float, float]:
    """(mean(a) - mean(b), low, high), where a[i] and b[i] were measured on the same row i."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} values against {second.shape}: pairs are needed")
    differences = first - second
    return (float(differences.mean()), *bootstrap_mean(differences, seed))


def _resamples(n: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks [k, n] of row indices drawn with replacement, from a generator of their own."""
    if n == 0:
        raise ValueError("an interval needs at least one value")
    generator = np.random.Generator(np.random.Philox(seed))
    left = max(FEWEST_RESAMPLES, min(RESAMPLES, DRAWS // n))
    while left > 0:
        now = min(left, max(1, BLOCK // n))
        yield generator.integers(0, n, size=(now, n))
        left -= now


def _ends(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
