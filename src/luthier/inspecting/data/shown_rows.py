"""Which rows are shown token by token, and what is shown of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier import component
from luthier.config import RunConfig
from luthier.data.dataset.blocks import Blocks
from luthier.data.dataset.prepare import Prepared
from luthier.data.dataset.reread import examples_of
from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.workers import Encoding
from luthier.data.row_names import short_names, some
from luthier.inspecting.data.one_row import look_at, rows_called
from luthier.inspecting.data.shown_row import ShownRow, shown_row
from luthier.objectives import Objective
from luthier.system.words import counted
from luthier.types import Ints

NEAR_LIMIT = 0.95
"""Share of the limit from which a row is near it: a little more, and it is cut or dropped."""
FEW_TRAINED = 0.1
"""Share of trained tokens below which a row is mostly read and hardly learned."""


@dataclass(frozen=True)
class Wanted:
    """Which rows are shown: the first `samples`, or those that are asked for."""

    row: str | None = None
    worst: bool = False
    longest: bool = False
    samples: int = 3
    rows: tuple[str, ...] = ()
    """names of rows that something else found worth a look"""

    @property
    def chosen(self) -> bool:
        return self.row is not None or self.worst or self.longest

    def others(self) -> list[Wanted]:
        """What is likely asked for next: the first, the worst and the longest rows, as many of them."""
        views = [Wanted(samples=self.samples), Wanted(worst=True, samples=self.samples)]
        return [view for view in (*views, Wanted(longest=True, samples=self.samples)) if view != self]


def shown_rows(
    config: RunConfig,
    prepared: Prepared,
    wanted: Wanted,
    limit: int | None,
    duplicates: dict[str, Any],
    every_view: bool,
) -> list[ShownRow]:
    """The rows that are wanted, each once for every sample that it gave, with all that it was chosen for.

    Args:
        limit: tokens that a row may have, None for no bound.
        duplicates: as `report._named` names them; conflicts are suspicious.
        every_view: the first, the worst and the longest where nothing is asked for.

    Raises:
        UserError: the one that is asked for is not there.
    """
    train, learned = prepared.train, prepared.learned["train"]
    chosen: dict[int, list[str]] = {}

    def choose(row: int, why: str) -> None:
        chosen.setdefault(row, []).append(why)

    asked = list[ShownRow]()
    objective: Objective = component.make("objectives", config.objective)
    if wanted.row is not None:
        encoding = Encoding(config.data, prepared.renderer, objective, limit)
        for called in rows_called(prepared.parts, config.data.system, wanted.row):
            asked += look_at(called, encoding)
    if not wanted.chosen:
        for row in range(min(wanted.samples, train.examples)):
            choose(row, "one of the first")
    everything = every_view and not wanted.chosen
    if wanted.worst or everything:
        for row, why in worst(prepared, limit, duplicates, wanted.samples):
            choose(row, why)
    if wanted.longest or everything:
        for row in np.argsort(-longest_samples(train), kind="stable")[: wanted.samples]:
            choose(int(row), "one of the longest")
    if wanted.rows:
        for row in range(train.examples):
            if train.place(row) in wanted.rows:
                choose(row, "suspected by the run")
    examples = examples_of(prepared.parts, config.data.system, set(map(train.row, chosen)))
    views = (
        shown_row(
            prepared.renderer,
            sample,
            examples.get(train.row(row)),
            train.place(row),
            "train",
            [*why, *_blocks(prepared, row)],
            roles=objective.roles,
            follows=isinstance(learned, Blocks) and learned.follows(row),
        )
        for row, why in chosen.items()
        for sample in map(train.at, train.members_of([row]))
    )
    return [*asked, *views]


def _blocks(prepared: Prepared, row: int) -> list[str]:
    """In which blocks a text is learned, where it is learned in blocks, and what else is in them."""
    blocks = prepared.learned["train"]
    if not isinstance(blocks, Blocks) or not (having := blocks.blocks_of(row)):
        return []
    first, last = having[0], having[-1]
    if first == last:
        return [f"in block {first + 1:,} of {len(blocks):,}: {blocks.place(first)}"]
    return [f"in blocks {first + 1:,} to {last + 1:,} of {len(blocks):,}: from {blocks.place(first)} on"]


def trained_shares(samples: SampleSet) -> npt.NDArray[np.float64]:
    """[examples] the share of the tokens of each that is trained, in all its samples."""
    trained, tokens = samples.by_example(samples.trained), samples.by_example(samples.lengths)
    shares: npt.NDArray[np.float64] = trained / np.maximum(tokens, 1)
    return shares


def longest_samples(samples: SampleSet) -> Ints:
    """[examples] tokens of the longest sample of each."""
    return np.maximum.reduceat(samples.lengths, samples.first_samples)


def worst(prepared: Prepared, limit: int | None, duplicates: dict[str, Any], most: int) -> list[tuple[int, str]]:
    """The training rows that a careful person would look at first, and why.

    In this order: rows that were cut, rows whose prompt has another answer elsewhere, rows that nearly fill the limit,
    rows of which hardly anything is trained; last, whichever have the smallest share of trained tokens. Texts that are learned in
    blocks have no limit and are trained whole: of these the shortest.
    """
    train, in_blocks = prepared.train, isinstance(prepared.learned["train"], Blocks)
    shares, lengths = trained_shares(train), longest_samples(train)
    cut = set(prepared.ledger.cut)
    conflicting = {
        name: (same, group)
        for kind, same in (("near_conflicts", "nearly the same"), ("conflicts", "the same"))
        for group in duplicates[kind]["listed"]
        for name in group
    }
    named = cut | conflicting.keys()
    places = [index for index in range(train.examples) if train.place(index) in named] if named else []
    out: dict[int, str] = {}
    for index in places:
        if train.place(index) in cut:
            out[index] = "it was cut: the end of its answer is lost"
    for index in places:
        if train.place(index) in conflicting:
            same, group = conflicting[train.place(index)]
            others = [name for name in group if name != train.place(index)]
            out.setdefault(index, f"{same} prompt has another answer in {some(short_names(others))}")
    if in_blocks:
        for index in np.argsort(lengths, kind="stable")[: most + len(out)]:
            out.setdefault(int(index), f"one of the shortest: {counted(int(lengths[index]), 'token')}")
        return list(out.items())[:most]
    if limit is not None:
        for index in np.flatnonzero(lengths >= NEAR_LIMIT * limit)[: most + len(out)]:
            out.setdefault(int(index), f"{lengths[index]:,} of {limit:,} tokens: a little more would not fit")
    for index in np.argsort(shares, kind="stable")[: most + len(out)]:
        few = "hardly any" if shares[index] < FEW_TRAINED else "the smallest share"
        out.setdefault(int(index), f"{few} of its tokens trained ({100 * shares[index]:.1f} %)")
    return list(out.items())[:most]
