"""Alpaca rows (Taori et al., 2023): `instruction`, `input`, `output`, and optionally `system`, `history` and `tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats import Format
from luthier.formats._history import history_of
from luthier.formats._shared import (
    AN_ANSWER,
    Column,
    conversation,
    filled,
    only_text,
    text_of,
    with_system,
)
from luthier.formats._tools import tools_of
from luthier.types import Conversation, Message, Row

__all__ = ["Alpaca"]


class Alpaca(Format):
    """The request is `instruction` and `input` joined by a newline; `history` holds earlier [request, answer] pairs,
    trained too.
    """

    columns = ("instruction", "output")

    class Config(ComponentConfig):
        kind: Literal["alpaca"] = "alpaca"
        instruction: Column = "instruction"
        """Column of the request."""
        input: Column | None = "input"
        """Column of a text that follows the request on a new line."""
        output: Column = "output"
        """Column of the answer."""
        system: Column | None = "system"
        """Column of the system text."""
        history: Column | None = "history"
        """Column of earlier [request, answer] pairs; their answers are trained too."""
        tools: Column | None = "tools"
        """Column of the tools on offer: a list of schemas, or JSON text of one."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        return 2 if {"instruction", "output"} <= columns else 0

    def parse(self, row: Row) -> Conversation:
        only_text(row)
        names = self.config
        addition = text_of(row, row.values, names.input, required=False)
        alone = not addition or names.instruction not in row.values
        texts = [text_of(row, row.values, names.instruction, required=alone), addition]
        answer = filled(row, text_of(row, row.values, names.output), names.output, AN_ANSWER)
        request = filled(row, "\n".join(text for text in texts if text), names.instruction, "a request")
        messages, places = history_of(row, names.history)
        messages += [Message("user", request), Message("assistant", answer)]
        messages, places = with_system(row, names.system, messages, [*places, names.instruction, names.output])
        return Conversation(conversation(row, messages, places, names.output), row.id, tools=tools_of(row, names.tools))
