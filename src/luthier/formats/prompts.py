"""Rows that only ask: a `prompt`, for learning from the model's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.formats._request import RequestConfig, asked, request_column, request_of
from luthier.formats._shared import PAIRED, only_text
from luthier.formats._tools import json_text, tools_of
from luthier.types import Prompt, Row

__all__ = ["Prompts"]

ANSWERS = PAIRED | {"completion", "output", "response", "answers", "text", "label", "messages", "conversations"}
"""Columns beside which a `prompt` has an answer."""


class Prompts:
    """A request as a text or as messages. The other columns are kept for a reward that needs them: a solution, say."""

    columns = ("prompt",)

    class Config(RequestConfig):
        kind: Literal["prompts"] = "prompts"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        return "prompt" in columns and not columns & ANSWERS

    def parse(self, row: Row) -> Prompt:
        only_text(row)
        names = self.config
        column = request_column(row, names)
        messages, places = request_of(row, names, column)
        used = {column, names.system, names.tools, names.input, names.history}
        used |= {"input", "history"} if names.prompt is None and column == "instruction" else set()
        others = {str(key): value for key, value in row.values.items() if key not in used}
        columns = json_text(row, others, ", ".join(others)) if others else ""
        return Prompt(asked(row, messages, places, column), row.id, tools_of(row, names.tools), columns)
