"""Rows of plain text: `text`. Every token is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats._shared import PAIRED, Column, filled, only_text, text_of
from luthier.types import Row, Text

__all__ = ["PlainText"]

OTHERS = PAIRED | {"instruction", "output", "prompt", "completion", "messages", "conversations"}


class PlainText:
    """For continued pretraining: no chat template, no roles."""

    columns = ("text",)

    class Config(ComponentConfig):
        kind: Literal["text"] = "text"
        text: Column = "text"
        """Column of the text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        """A `text` beside the columns of a conversation is a rendering of it, which would train the prompt as well."""
        return "text" in columns and not columns & OTHERS

    def parse(self, row: Row) -> Text:
        only_text(row)
        column = self.config.text
        return Text(filled(row, text_of(row, row.values, column), column), row.id)
