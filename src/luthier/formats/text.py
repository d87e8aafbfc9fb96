"""Rows of plain text: `text`. Every token is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats import Format
from luthier.formats._request import ANSWERS, REQUESTS
from luthier.formats._shared import Column, filled, only_text, text_of
from luthier.types import Row, Text

__all__ = ["PlainText"]


class PlainText(Format):
    """For continued pretraining: no chat template, no roles."""

    columns = ("text",)

    class Config(ComponentConfig):
        kind: Literal["text"] = "text"
        text: Column = "text"
        """Column of the text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        """A `text` beside a request or an answer is a rendering of them, which would train the request as well."""
        return 1 if "text" in columns and not columns & {*REQUESTS, *ANSWERS} else 0

    def parse(self, row: Row) -> Text:
        only_text(row)
        column = self.config.text
        return Text(filled(row, text_of(row, row.values, column), column), row.id)
