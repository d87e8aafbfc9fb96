"""Rows as chat APIs write them: `messages`, a list of {`role`, `content`} maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats._shared import PAIRED, checked, is_turns, no_tools, same_names, turns_of
from luthier.types import Conversation, Row

__all__ = ["Messages"]


class Messages:
    """Every assistant's message is trained, unless it says `train: false` (or `weight: 0`)."""

    class Config(ComponentConfig):
        kind: Literal["messages"] = "messages"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        """A true-or-false `label` beside the messages is feedback on them, not an answer to learn."""
        return (
            is_turns(first.get("messages"), "role", "content")
            and not columns & PAIRED
            and not isinstance(first.get("label"), bool)
        )

    def parse(self, row: Row) -> Conversation:
        no_tools(row)
        messages = turns_of(
            row, row.values.get("messages"), "messages", role_key="role", text_key="content", known=same_names()
        )
        return Conversation(checked(row, messages, "messages"), row.id)
