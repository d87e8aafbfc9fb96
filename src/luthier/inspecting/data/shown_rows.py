"""Which rows are shown token by token, and what is shown of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.config import RunConfig
from luthier.data.dataset.prepare import Prepared
from luthier.data.dataset.reread import asides_of, contents_of, examples_of, samples_of, served_prompts
from luthier.data.dataset.samples import SampleSet
from luthier.data.row_names import NUMBER, RowName, short_names, some
from luthier.errors import UserError
from luthier.inspecting.data.token_view import Token, texts_of, tokens_of
from luthier.types import Conversation, Example, Ints, Sample, Text

NEAR_LIMIT = 0.95
"""Share of the limit from which a row is near it: a little more, and it is cut or dropped."""
FEW_TRAINED = 0.1
"""Share of trained tokens below which a row is mostly read and hardly learned."""


@dataclass(frozen=True)
class ServedPrompt:
    """What is served to get one answer of a row, encoded on its own."""

    answer: int
    """which of the row's trained answers, from 1"""
    tokens: int
    begins: int
    """where the answer begins in the row's tokens"""
    equal: bool
    """the ids that are served are the ids that stand before the answer in training"""
    text: list[str]
    """what each token adds"""


@dataclass(frozen=True)
class ShownRow:
    """One row, token by token."""

    row: str
    purpose: str
    """train, eval, or dropped"""
    why: list[str]
    """for what it was chosen"""
    tokens: list[Token]
    trained: int
    served: list[ServedPrompt] = field(default_factory=list)

    @property
    def unlearned(self) -> str:
        """What is said of a row that is not learned from."""
        return {"train": "", "eval": ", held out", "dropped": ", dropped"}[self.purpose]


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
    tokenizer: Any,
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
    chosen: dict[tuple[str, int], list[str]] = {}

    def choose(purpose: str, row: int, why: str) -> None:
        chosen.setdefault((purpose, row), []).append(why)

    if wanted.row is not None:
        for purpose, row in places_of(prepared, wanted.row):
            choose(purpose, row, "asked for")
    dropped = [] if wanted.row is None or chosen else _dropped(config, prepared, tokenizer, wanted.row)
    if not wanted.chosen:
        for row in range(min(wanted.samples, prepared.train.examples)):
            choose("train", row, "one of the first")
    everything = every_view and not wanted.chosen
    if wanted.worst or everything:
        for row, why in worst(prepared, limit, duplicates, wanted.samples):
            choose("train", row, why)
    if wanted.longest or everything:
        for row in np.argsort(-longest_samples(prepared.train), kind="stable")[: wanted.samples]:
            choose("train", int(row), "one of the longest")
    for name in wanted.rows:
        for purpose, row in places_of(prepared, name):
            choose(purpose, row, "suspected by the run")
    names = {place: _samples(prepared, place[0]).row(place[1]) for place in chosen}
    examples = examples_of(prepared.parts, config.data.system, set(names.values()))
    views = (
        _view(prepared, tokenizer, samples[index], purpose, why, examples.get(names[purpose, row]))
        for (purpose, row), why in chosen.items()
        for samples in (_samples(prepared, purpose),)
        for index in samples.members_of([row])
    )
    return [*dropped, *views]


def _dropped(config: RunConfig, prepared: Prepared, tokenizer: Any, row: str) -> list[ShownRow]:
    """A row that was left out, as it would be trained.

    Raises:
        UserError: there are no tokens of it, or no row has this name.
    """
    wanted = RowName.read(row)
    reason, name = next(
        ((why, name) for why, names in prepared.ledger.dropped.items() for name in filter(wanted.means, names)),
        ("", ""),
    )
    if not name:
        fix = f"--row {prepared.train.row(0)}"
        raise UserError(f"--row {row}", "no row has this name", f"FILE:N, or N alone; {NUMBER}", fix)
    example = examples_of(prepared.parts, config.data.system, [name]).get(name)
    try:
        samples = samples_of(prepared.renderer, example) if isinstance(example, Conversation | Text) else []
    except UserError:
        samples = []
    if not samples:
        raise UserError(f"--row {row}", f"{name} was dropped: {reason}", "a row that can be encoded")
    why = ["asked for", f"it was dropped: {reason}"]
    return [_view(prepared, tokenizer, sample, "dropped", why, example) for sample in samples]


def _samples(prepared: Prepared, purpose: str) -> SampleSet:
    samples = prepared.train if purpose == "train" else prepared.eval
    assert samples is not None
    return samples


def _view(
    prepared: Prepared, tokenizer: Any, sample: Sample, purpose: str, why: list[str], example: Example | None
) -> ShownRow:
    special = prepared.renderer.encoder.control_ids
    served = served_prompts(prepared.renderer, example, sample) if example is not None else []
    return ShownRow(
        row=sample.row,
        purpose=purpose,
        why=why,
        tokens=tokens_of(
            tokenizer,
            sample,
            contents_of(example) if example is not None else None,
            special,
            asides_of(example) if example is not None else (),
        ),
        trained=sample.trained_tokens,
        served=[
            ServedPrompt(one.answer, len(one.ids), one.begins, one.equal, texts_of(tokenizer, one.ids))
            for one in served
        ],
    )


def places_of(prepared: Prepared, row: str) -> list[tuple[str, int]]:
    """Where a row is among the examples: by `FILE:N`, or by N alone."""
    wanted = RowName.read(row)
    return [
        (purpose, example)
        for purpose, part in (("train", prepared.train), ("eval", prepared.eval))
        if part is not None
        for example in range(part.examples)
        if wanted.means(part.row(example))
    ]


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
    rows of which hardly anything is trained; last, whichever have the smallest share of trained tokens.
    """
    train = prepared.train
    shares, lengths = trained_shares(train), longest_samples(train)
    cut = set(prepared.ledger.cut)
    conflicting = {name: group for group in duplicates["conflicts"]["listed"] for name in group}
    named = cut | conflicting.keys()
    places = [index for index in range(train.examples) if train.row(index) in named] if named else []
    out: dict[int, str] = {}
    for index in places:
        if train.row(index) in cut:
            out[index] = "it was cut: the end of its answer is lost"
    for index in places:
        if train.row(index) in conflicting:
            others = [name for name in conflicting[train.row(index)] if name != train.row(index)]
            out.setdefault(index, f"the same prompt has another answer in {some(short_names(others))}")
    if limit is not None:
        for index in np.flatnonzero(lengths >= NEAR_LIMIT * limit)[: most + len(out)]:
            out.setdefault(int(index), f"{lengths[index]:,} of {limit:,} tokens: a little more would not fit")
    for index in np.argsort(shares, kind="stable")[: most + len(out)]:
        few = "hardly any" if shares[index] < FEW_TRAINED else "the smallest share"
        out.setdefault(int(index), f"{few} of its tokens trained ({100 * shares[index]:.1f} %)")
    return list(out.items())[:most]
