"""Rows read once more, for those who want to see them: the encoded samples know a row's place, not its words."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from luthier.data.chat.check import served_ids
from luthier.data.chat.encoded import Encoded
from luthier.data.chat.laws import LawBroken
from luthier.data.chat.renderer import ChatRenderer, sample_of
from luthier.data.recognise import Part, RowParser, row_parser_of
from luthier.errors import BadRow, UserError
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


def examples_of(parts: Iterable[Part], system: str | None, wanted: Collection[str]) -> dict[str, Example]:
    """The rows that are wanted, by their `id`, as their format reads them; one that is not found any more is left out.

    Args:
        system: `data.system` of the configuration.
    """
    left, out = set(wanted), dict[str, Example]()
    for part in parts:
        if not left:
            break
        parser, rows = row_parser_of(part.source, part.source.rows(), f"data.{part.purpose}", system)
        if parser is None:
            continue
        for row in rows:
            if isinstance(row, Row) and row.id in left:
                left.discard(row.id)
                if (example := parsed(parser, row)) is not None:
                    out[row.id] = example
            if not left:
                break
    return out


def parsed(parser: RowParser, row: Row) -> Example | None:
    """The row as its format reads it; None where it cannot be used, or no more."""
    try:
        return parser.parse(row)
    except BadRow:
        return None


def samples_of(renderer: ChatRenderer, example: Conversation | Text) -> list[Sample]:
    """What an example is trained as, or would be if it broke no law. Raises UserError where it cannot be rendered."""
    return [sample_of(part, example.row, 0) for part in _encoded(renderer, example)]


def _encoded(renderer: ChatRenderer, example: Conversation | Text) -> tuple[Encoded, ...]:
    try:
        return renderer.encoded_parts(example)
    except LawBroken as error:
        if error.encoded is None:
            raise
        return (error.encoded,)


def contents_of(example: Example) -> list[str]:
    """The texts that a row brings, in their order; what else a rendered text has is the template's."""
    if isinstance(example, Text):
        return [example.text]
    if isinstance(example, Conversation):
        return [message.content for message in example.messages]
    return []


def asides_of(example: Example) -> list[str]:
    """What a row brings beside the texts of its messages, as templates mostly write it: tools, thoughts, calls."""
    if not isinstance(example, Conversation):
        return []
    out = [json.dumps(tool, ensure_ascii=False) for tool in json.loads(example.tools)] if example.tools else []
    for message in example.messages:
        out += filter(None, (message.thinking.strip(), *(call.arguments for call in message.tool_calls)))
    return out


def served_prompts(renderer: ChatRenderer, example: Example, sample: Sample) -> list[Served]:
    """For each trained answer what is served to get it, encoded on its own, beside what training has there."""
    if not isinstance(example, Conversation):
        return []
    before = sample.input_ids.tolist()
    try:
        # An example of several samples has one for each answer; one that was cut begins as the whole does.
        part = next((part for part in _encoded(renderer, example) if part.ids[: len(before)] == before), None)
        if part is None:  # the file has changed since
            return []
        turns = [turn for turn in part.evidence.turns if turn.trained]
        prompts = [served_ids(renderer, example, turn.index) for turn in turns]
    except UserError:  # it was encoded once: the file has changed since
        return []
    return [
        Served(number, ids, begins, before[:begins] == ids)
        for number, (ids, (begins, _)) in enumerate(zip(prompts, part.evidence.spans, strict=True), start=1)
        if begins < len(sample)
    ]
