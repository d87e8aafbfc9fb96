"""Rows with a better and a worse answer to one request: `chosen` and `rejected`, or a list of `answers`, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.errors import BadRow, excerpt
from luthier.formats import Format
from luthier.formats._request import (
    RequestConfig,
    answer_in,
    answered,
    asked,
    request_column,
    request_of,
)
from luthier.formats._shared import Column, found, only_text, with_system
from luthier.formats._tools import tools_of
from luthier.types import Message, Preference, Row

__all__ = ["Preferences"]

Turns = tuple[list[Message], list[str]]
"""Messages and their places."""


class Preferences(Format):
    """An answer is a text, a message, or a list of messages. Lists that begin with the request hold it themselves: it is
    what they have in common, and a `prompt` beside them must be the same.
    """

    verdicts = ("chosen", "rejected")
    columns = ("chosen", "rejected")

    class Config(RequestConfig):
        kind: Literal["preference"] = "preference"
        chosen: Column = "chosen"
        """Column of the better answer."""
        rejected: Column = "rejected"
        """Column of the worse answer."""
        answers: Column | None = "answers"
        """Column of a list of two or more answers, the best first; read where there is no `chosen`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        """One of a pair alone may be the half of a row whose other half is null: the next row tells."""
        pair = columns & {"chosen", "rejected"}
        if len(pair) == 1:
            return None
        return 4 if pair or ("prompt" in columns and isinstance(first.get("answers"), (list, tuple))) else 0

    def parse(self, row: Row) -> Preference:
        only_text(row)
        given = self._answers(row)
        whole = [bool(messages) and messages[0].role in ("system", "user") for messages, _ in given.values()]
        if any(whole):
            if not all(whole):
                wrong = "one answer begins with the request, another does not"
                raise BadRow(row.place, " and ".join(given), wrong, "answers alone, or whole conversations")
            prompt, given = self._split(row, given)
        else:
            column = request_column(row, self.config)
            prompt = asked(row, *request_of(row, self.config, column), column)
        answers = [answered(row, prompt, *turns, place) for place, turns in given.items()]
        for index, place in enumerate(given):
            if answers[index] in answers[:index]:
                raise BadRow(
                    row.place, place, "the same answer as " + _first_same(given, answers, index), "another answer"
                )
        return Preference(prompt, tuple(answers), row.id, tools_of(row, self.config.tools))

    def _answers(self, row: Row) -> dict[str, Turns]:
        """The answers by their places, the best first. Raises BadRow."""
        names, values = self.config, row.values
        if names.answers is None or values.get(names.chosen) is not None or values.get(names.answers) is None:
            return {key: answer_in(row, names, values, key, key) for key in (names.chosen, names.rejected)}
        ranked = values[names.answers]
        if not isinstance(ranked, (list, tuple)) or len(ranked) < 2:
            raise BadRow(row.place, names.answers, found(ranked), "a list of two or more answers, the best first")
        places = [f"{names.answers}[{index}]" for index in range(len(ranked))]
        return {
            place: answer_in(row, names, {place: one}, place, place) for place, one in zip(places, ranked, strict=True)
        }

    def _split(self, row: Row, given: dict[str, Turns]) -> tuple[tuple[Message, ...], dict[str, Turns]]:
        """The request that whole conversations have in common, and what is left of each. Raises BadRow."""
        conversations = [messages for messages, _ in given.values()]
        length = next(
            (
                index
                for index, turns in enumerate(zip(*conversations, strict=False))
                if any(turn != turns[0] for turn in turns)
            ),
            min(map(len, conversations)),
        )
        first, last = next(iter(given)), list(given)[-1]
        if all(len(messages) == length for messages in conversations):
            raise BadRow(row.place, last, f"the same answer as {first}", "another answer")
        messages, places = given[first][0][:length], given[first][1][:length]
        prompt = asked(
            row, *with_system(row, self.config.system, messages, places), f"what {' and '.join(given)} share"
        )
        self._same_prompt(row, prompt)
        return prompt, {place: (turns[length:], at[length:]) for place, (turns, at) in given.items()}

    def _same_prompt(self, row: Row, prompt: tuple[Message, ...]) -> None:
        """Refuses a request in a column of its own that is another than the answers' one. Raises BadRow."""
        column = self.config.prompt or "prompt"
        value = row.values.get(column)
        if value is None or (isinstance(value, str) and any(message.content == value for message in prompt)):
            return
        if isinstance(value, (list, tuple)):
            own, _ = request_of(row, self.config, column)
            if [(one.role, one.content) for one in own] == [(one.role, one.content) for one in prompt]:
                return
        raise BadRow(
            row.place, column, f"{excerpt(value)}, another request than the answers begin with", "the same one"
        )


def _first_same(given: dict[str, Turns], answers: list[tuple[Message, ...]], index: int) -> str:
    return list(given)[answers.index(answers[index])]
