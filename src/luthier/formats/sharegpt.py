"""ShareGPT rows: `conversations`, a list of {`from`, `value`} maps, and optionally `system` and `tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from luthier.component import ComponentConfig
from luthier.formats import Format
from luthier.formats._shared import Column, conversation, numbered, only_text, with_system
from luthier.formats._tools import tools_of
from luthier.formats._turns import SHAREGPT, SHAREGPT_ROLES, Meaning, Spelling, is_turns, meanings, turns_of
from luthier.types import Conversation, Row

__all__ = ["ShareGPT"]


class ShareGPT(Format):
    """`from` is human (or user), gpt (or assistant), system, function_call (the text is the JSON of an assistant's calls),
    observation (or tool). Every answer and every call is trained.
    """

    columns = ("conversations",)

    class Config(ComponentConfig):
        model_config = ConfigDict(serialize_by_alias=True)

        kind: Literal["sharegpt"] = "sharegpt"
        conversations: Column = "conversations"
        """Column of the messages."""
        from_: Column = Field("from", alias="from")
        """Key of a message's role."""
        value: Column = "value"
        """Key of a message's text."""
        roles: dict[str, Meaning] | None = None
        """The names of roles in the file and what each means: `system`, `user`, `assistant`, `tool`, or `tool_call` (JSON
        text of an assistant's calls). Default: the usual names."""
        system: Column | None = "system"
        """Column of the system text; a system message among the conversations goes before it."""
        tools: Column | None = "tools"
        """Column of the tools on offer: a list of schemas, or JSON text of one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spelling = Spelling(config.from_, config.value, meanings(config.roles, SHAREGPT_ROLES))

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        return 2 if is_turns(first.get("conversations"), SHAREGPT) else 0

    def parse(self, row: Row) -> Conversation:
        only_text(row)
        field = self.config.conversations
        messages = turns_of(row, row.values.get(field), field, self.spelling)
        messages, places = with_system(row, self.config.system, messages, numbered(field, messages))
        return Conversation(conversation(row, messages, places, field), row.id, tools=tools_of(row, self.config.tools))
