"""Rows as chat APIs write them: `messages`, a list of {`role`, `content`} maps, and optionally `tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats import Format
from luthier.formats._shared import Column, conversation, numbered, only_text, with_system
from luthier.formats._tools import tools_of
from luthier.formats._turns import API, API_ROLES, Meaning, Spelling, is_turns, meanings, turns_of
from luthier.types import Conversation, Row

__all__ = ["Messages"]


class Messages(Format):
    """Every assistant's message is trained, unless it says `train: false` (or `weight: 0`). `tool_calls`, results of role
    `tool`, `reasoning_content` and texts in parts are read as chat APIs write them.
    """

    columns = ("messages",)

    class Config(ComponentConfig):
        kind: Literal["messages"] = "messages"
        messages: Column = "messages"
        """Column of the messages."""
        role: Column = "role"
        """Key of a message's role."""
        content: Column = "content"
        """Key of a message's text."""
        roles: dict[str, Meaning] | None = None
        """The names of roles in the file and what each means: `system`, `user`, `assistant`, `tool`, or `tool_call` (JSON
        text of an assistant's calls). Default: the usual names."""
        system: Column | None = "system"
        """Column of the system text; a system message among the messages goes before it."""
        tools: Column | None = "tools"
        """Column of the tools on offer: a list of schemas, or JSON text of one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spelling = Spelling(config.role, config.content, meanings(config.roles, API_ROLES))

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        return 2 if is_turns(first.get("messages"), API) else 0

    def parse(self, row: Row) -> Conversation:
        only_text(row)
        field = self.config.messages
        messages = turns_of(row, row.values.get(field), field, self.spelling)
        messages, places = with_system(row, self.config.system, messages, numbered(field, messages))
        return Conversation(conversation(row, messages, places, field), row.id, tools=tools_of(row, self.config.tools))
