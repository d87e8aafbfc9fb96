"""Which examples an optimizer step covers: a pure function of (seed, epoch, step), whatever the hardware.

So the place in the data is two integers, and a resume or a change of process count neither skips nor repeats a row. How many
samples an example has does not matter here: they follow it (`SampleSet.members_of`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from luthier.errors import UserError
from luthier.randomness import permutation
from luthier.system.words import counted
from luthier.types import Ints

Until = Literal["first_exhausted", "all_exhausted"]

BLOCKS_OF_A_WINDOW = 16
"""Blocks of neighbours that are shuffled among each other where data are streamed: what a reader keeps in memory."""

MANY_EPOCHS = 50
"""Of which `max_steps` may be more by mistake: what is learned by heart is learned by then."""
MOST_PASSES = 1_000
"""Over the examples that there are, in one epoch of a mixture."""


@dataclass(frozen=True)
class Mixture:
    """Sources that take turns: how many examples each has, and its weight in the mixture."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    until: Until
    """`first_exhausted`: an epoch ends when the first source would have to repeat; `all_exhausted`: when the last one
    has been seen whole, the others repeating."""

    def __post_init__(self) -> None:
        """Raises UserError: weights so unlike that an epoch would be all repetition."""
        epoch, rows = sum(self.counts), sum(self.sizes)
        if epoch > MOST_PASSES * rows:
            raise UserError(
                "data.mixing",
                f"an epoch of {epoch:,} examples, of {rows:,} that there are: weights {min(self.weights):g} to {max(self.weights):g}",
                f"at most {MOST_PASSES:,} times as many",
                "weights that are more alike, or mixing=first_exhausted",
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each source in one epoch: in proportion to the weights, to the nearest example."""
        shares = [weight / sum(self.weights) for weight in self.weights]
        lengths = [size / share for size, share in zip(self.sizes, shares, strict=True)]
        length = min(lengths) if self.until == "first_exhausted" else max(lengths)
        return tuple(max(1, round(length * share)) for share in shares)


@dataclass(frozen=True)
class Steps:
    """The order of the data: step -> its examples. The last step of an epoch may be short."""

    examples: int
    """in the data set"""
    global_batch_size: int
    """examples of a step"""
    seed: int
    epochs: float
    max_steps: int | None = None
    mixture: Mixture | None = None
    neighbours: int | None = None
    """how many of these are drawn together, so that a reader of files need not jump; None: none"""

    @property
    def per_pass(self) -> int:
        """Examples of one epoch."""
        return sum(self.mixture.counts) if self.mixture else self.examples

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return math.ceil(self.per_pass / self.global_batch_size)

    @property
    def total(self) -> int:
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(round(self.epochs * self.per_epoch, 9)))  # 0.07 * 100 is a little more than 7 in floats

    def notes(self) -> list[str]:
        """What is said before the first step, where the lengths of things are hardly meant."""
        out, rows = [], counted(self.per_pass, "row")
        if self.per_pass < self.global_batch_size:
            out.append(f"global batch {self.global_batch_size}: an epoch has {rows}, so every step is of {rows}")
        if self.max_steps is not None and self.max_steps > MANY_EPOCHS * self.per_epoch:
            epochs, of_one = self.max_steps // self.per_epoch, counted(self.per_epoch, "step")
            out.append(f"max_steps {self.max_steps:,}: {epochs:,} epochs of {rows}, each of {of_one}, if that is meant")
        return out

    def epoch_of(self, step: int) -> float:
        """Passes over the data when `step` (from 0) is done."""
        whole, inside = divmod(step + 1, self.per_epoch)
        return round(whole + min(1.0, inside * self.global_batch_size / self.per_pass), 6)

    def indices(self, step: int) -> list[int]:
        """The examples of a step (from 0), by their places in the data set."""
        epoch, inside = divmod(step, self.per_epoch)
        order = _order(self.examples, self.mixture, self.neighbours, self.seed, epoch)
        return [int(i) for i in order[inside * self.global_batch_size : (inside + 1) * self.global_batch_size]]


@lru_cache(maxsize=2)
def _order(examples: int, mixture: Mixture | None, neighbours: int | None, seed: int, epoch: int) -> Ints:
    """[examples of the epoch]: their places in the data set."""
    if mixture is None:
        order = _pass(examples, neighbours, seed, "order", epoch)
        return order if neighbours is None else _shuffled_in_windows(order, neighbours, seed, epoch)
    chosen, places, start = [], [], 0
    for number, (size, count) in enumerate(zip(mixture.sizes, mixture.counts, strict=True)):
        chosen.append(start + _endless(size, epoch * count, count, neighbours, seed, number))
        places.append((np.arange(count) + 0.5) / count)  # evenly over the epoch
        start += size
    order = np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")]
    if neighbours is not None:
        return _shuffled_in_windows(order, neighbours, seed, epoch)
    return order[permutation(len(order), seed, "order", epoch)]


def _endless(size: int, start: int, count: int, neighbours: int | None, seed: int, source: int) -> Ints:
    """`count` indices of a source from `start` on, in whole passes over it, each in an order of its own: rows that one
    epoch leaves out come first in the next.
    """
    first, last = start // size, (start + count - 1) // size
    passes = [_pass(size, neighbours, seed, f"source {source}", number) for number in range(first, last + 1)]
    return np.concatenate(passes)[start - first * size :][:count]


def _pass(size: int, neighbours: int | None, seed: int, stream: str, number: int) -> Ints:
    """Each index below `size` once; whole blocks of neighbours where data are streamed."""
    if neighbours is None:
        return permutation(size, seed, stream, number)
    blocks = permutation(math.ceil(size / neighbours), seed, stream, number)
    starts = [block * neighbours for block in blocks]
    return np.concatenate([np.arange(start, min(size, start + neighbours)) for start in starts])


def _shuffled_in_windows(order: Ints, neighbours: int, seed: int, epoch: int) -> Ints:
    size = BLOCKS_OF_A_WINDOW * neighbours
    windows = [order[start : start + size] for start in range(0, len(order), size)]
    return np.concatenate(
        [window[permutation(len(window), seed, "window", epoch, place)] for place, window in enumerate(windows)]
    )
