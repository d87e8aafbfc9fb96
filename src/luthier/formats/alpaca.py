"""Alpaca rows (Taori et al., 2023): `instruction`, `input`, `output`, and optionally `system` and `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.errors import excerpt
from luthier.formats._shared import PAIRED, BadRow, checked, filled, text_of
from luthier.types import Conversation, Message, Row

__all__ = ["Alpaca"]


class Alpaca:
    """The request is `instruction` and `input` joined by a newline; `history` holds earlier [request, answer] pairs,
    trained too.
    """

    class Config(ComponentConfig):
        kind: Literal["alpaca"] = "alpaca"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        return {"instruction", "output"} <= columns and not columns & PAIRED

    def parse(self, row: Row) -> Conversation:
        instruction = text_of(row, row.values, "instruction")
        addition = text_of(row, row.values, "input", required=False)
        request = "\n".join(part for part in (instruction, addition) if part)
        answer = filled(
            row, text_of(row, row.values, "output"), "output", "an answer: an empty one trains only the stop token"
        )
        messages = [Message("system", text_of(row, row.values, "system", required=False)), *self._history(row)]
        messages += [Message("user", filled(row, request, "instruction", "a request")), Message("assistant", answer)]
        return Conversation(checked(row, messages, ""), row.id)

    def _history(self, row: Row) -> list[Message]:
        history = row.values.get("history")
        if history is None:
            return []
        if not isinstance(history, (list, tuple)):
            raise BadRow(row.place, "history", excerpt(history), "a list of [request, answer] pairs")
        messages = []
        for index, pair in enumerate(history):
            place = f"history[{index}]"
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise BadRow(row.place, place, excerpt(pair), "a pair [request, answer]")
            texts = [filled(row, text_of(row, {place: text}, place), place) for text in pair]
            messages += [Message("user", texts[0]), Message("assistant", texts[1])]
        return messages
