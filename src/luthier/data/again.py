"""Rows read once more, for those who want to see them: the encoded samples know a row's place, not its words."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from luthier import component
from luthier.config import RunConfig
from luthier.data.prepare import ROWS_TO_RECOGNISE, recognise
from luthier.data.render import ChatRenderer
from luthier.data.source import sources
from luthier.errors import UserError
from luthier.formats._shared import BadRow
from luthier.types import Conversation, Example, Row, Sample, Text


@dataclass(frozen=True)
class Served:
    """What is served to get one answer, and whether training has the same before it."""

    answer: int
    """which of the row's trained answers, from 1"""
    ids: list[int]
    begins: int
    """where the answer begins in the sample"""
    equal: bool
    """the served ids are those of the sample before the answer"""


def examples_of(config: RunConfig, wanted: Collection[str]) -> dict[str, Example]:
    """The rows `file:line` that are wanted, as the run's format reads them; one that is not found any more is left out."""
    left, out = set(wanted), dict[str, Example]()
    held_out = config.data.eval if isinstance(config.data.eval, tuple) else ()
    for file in (*config.data.train, *held_out):
        for source in sources(file, "data"):
            if not left:
                return out
            rows = source.rows()
            first = list(itertools.islice(rows, ROWS_TO_RECOGNISE))
            good = [row for row in first if isinstance(row, Row)]
            kind = file.format if file.format != "auto" or not good else recognise(good, source.name, "data")
            if kind == "auto":
                continue
            cls = component.load("formats", kind)
            reader = cls(cls.Config(kind=kind))
            for row in itertools.chain(first, rows):
                if isinstance(row, Row) and row.id in left:
                    left.discard(row.id)
                    if (example := _parsed(reader, row)) is not None:
                        out[row.id] = example
    return out


def _parsed(reader: Any, row: Row) -> Example | None:
    try:
        example: Example = reader.parse(row)
    except BadRow:  # it was used once: the file has changed since
        return None
    return example


def contents_of(example: Example) -> list[str]:
    """The texts that a row brings, in their order; what else a rendered text has is the template's."""
    if isinstance(example, Text):
        return [example.text]
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    return []


def served_prompts(renderer: ChatRenderer, example: Example, sample: Sample) -> list[Served]:
    """For each trained answer what is served to get it, encoded on its own, beside what training has there."""
    if not isinstance(example, Conversation):
        return []
    try:
        evidence = renderer.encoded(example).evidence
        turns = [turn for turn in evidence.turns if turn.trained]
        prompts = [renderer.prompt_ids(example.messages[: turn.index]) for turn in turns]
    except UserError:  # it was encoded once: the file has changed since
        return []
    before = [int(index) for index in sample.input_ids]
    return [
        Served(number, ids, begins, before[:begins] == ids)
        for number, (ids, (begins, _)) in enumerate(zip(prompts, evidence.spans, strict=True), start=1)
        if begins < len(sample)
    ]
