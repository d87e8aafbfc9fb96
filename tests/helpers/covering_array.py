"""Few trials in which each two values of different keys meet: a greedy all-pairs array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Trial = dict[str, str]


def covering_trials(
    values: Mapping[str, Sequence[str]], allowed: Callable[[Trial], bool] = lambda trial: True
) -> list[Trial]:
    """Trials (key -> value, all keys) in which every pair of values that may stand together does.

    Args:
        values: key -> its values; every value can stand in some trial.
        allowed: whether a trial, or the part of one, may be; what it refuses it refuses whatever is added.
    """
    open_pairs = {
        pair
        for first, second in combinations(values, 2)
        for one in values[first]
        for other in values[second]
        if allowed({first: one, second: other})
        for pair in [((first, one), (second, other))]
    }
    trials: list[Trial] = []
    while open_pairs:
        trial = _complete(dict(min(open_pairs)), values, open_pairs, allowed)
        covered = _pairs(trial, values) & open_pairs
        open_pairs -= covered
        trials.append(trial)
    return trials


def _pairs(trial: Trial, values: Mapping[str, Sequence[str]]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return {((a, trial[a]), (b, trial[b])) for a, b in combinations(values, 2) if a in trial and b in trial}


def _complete(
    trial: Trial,
    values: Mapping[str, Sequence[str]],
    open_pairs: set[tuple[tuple[str, str], tuple[str, str]]],
    allowed: Callable[[Trial], bool],
) -> Trial:
    """The trial with a value for each key: always the one that meets most values which it has not met yet."""
    for key in values:
        if key in trial:
            continue
        candidates = [{**trial, key: value} for value in values[key] if allowed({**trial, key: value})]
        if not candidates:
            raise ValueError(f"no value of {key} goes with {trial}")
        trial = max(candidates, key=lambda candidate: len(_pairs(candidate, values) & open_pairs))
    return trial
