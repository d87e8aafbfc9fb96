"""Rows with an answer that somebody called good or bad: a `label` of true or false, or 1 or 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.errors import BadRow, excerpt
from luthier.formats import Format
from luthier.formats._request import (
    ANSWERS,
    RequestConfig,
    answer_of,
    answered,
    asked,
    request_column,
    request_of,
)
from luthier.formats._shared import Column, conversation, found, missing, only_text, verdict_of
from luthier.formats._tools import tools_of
from luthier.types import Feedback, Row

__all__ = ["UserFeedback"]


class UserFeedback(Format):
    """The last answer of `messages` (or `conversations`), or the `completion` (or `output`) of a `prompt` (or
    `instruction`), and whether it is good.
    """

    verdicts = ("label",)
    columns = ("label",)

    class Config(RequestConfig):
        kind: Literal["feedback"] = "feedback"
        completion: Column | None = None
        """Column of the answer: a text, or messages. Default: the request's messages, where they end with an answer;
        else the one of `completion`, `output`, `response` that a row has."""
        label: Column = "label"
        """Column of the verdict: true or false, or 1 or 0."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        """A `label` that is neither true nor false is none of ours; where it is null or empty, the next row may have one."""
        whole = isinstance(first.get("messages", first.get("conversations")), (list, tuple))
        parts = ({"prompt", "completion"} <= columns) or ({"instruction", "output"} <= columns)
        if "label" not in columns or not (whole or parts):
            return 0
        return None if first["label"] in (None, "") else 3 if verdict_of(first["label"]) is not None else 0

    def parse(self, row: Row) -> Feedback:
        only_text(row)
        column = request_column(row, self.config)
        messages, places = request_of(row, self.config, column)
        answer = self.config.completion
        if answer is None and messages[-1].role != "assistant":
            answer = next((name for name in ANSWERS if name != column and row.values.get(name) is not None), None)
        if answer is None:
            whole = conversation(row, [*messages], places, column)
        else:
            prompt = asked(row, messages, places, column)
            whole = (*prompt, *answered(row, prompt, *answer_of(row, self.config, answer), answer))
        return Feedback(whole, self._verdict(row), row.id, tools_of(row, self.config.tools))

    def _verdict(self, row: Row) -> bool:
        """Raises BadRow."""
        label = self.config.label
        value = row.values.get(label)
        if (good := verdict_of(value)) is not None:
            return good
        wrong = missing(row, row.values, label) if value is None else found(value)
        fix = f"write true for a good answer and false for a bad one; if {label} is no verdict, name the format"
        raise BadRow(row.place, label, wrong or excerpt(value), "true or false, 1 or 0", fix)
