"""Rows that only ask: a `prompt`, for learning from the model's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.formats import Format
from luthier.formats._request import ANSWERS, RequestConfig, asked, request_column, request_of
from luthier.formats._shared import only_text
from luthier.formats._tools import json_text, tools_of
from luthier.types import Prompt, Row

__all__ = ["Prompts"]


class Prompts(Format):
    """A request as a text or as messages. The other columns are kept for a reward that needs them: a solution, say."""

    columns = ("prompt",)

    class Config(RequestConfig):
        kind: Literal["prompts"] = "prompts"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        return 1 if "prompt" in columns and not columns & {*ANSWERS, "answers", "label"} else 0

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
