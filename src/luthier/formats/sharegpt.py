"""ShareGPT rows: `conversations`, a list of {`from`, `value`} maps, and optionally `system`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats._shared import PAIRED, checked, is_turns, no_tools, text_of, turns_of
from luthier.types import Conversation, Message, Role, Row

__all__ = ["ShareGPT"]

NAMES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


class ShareGPT:
    """`from` is human (or user), gpt (or assistant), system, tool (or observation). Every answer is trained."""

    class Config(ComponentConfig):
        kind: Literal["sharegpt"] = "sharegpt"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        return is_turns(first.get("conversations"), "from", "value") and not columns & PAIRED

    def parse(self, row: Row) -> Conversation:
        no_tools(row)
        messages = turns_of(
            row, row.values.get("conversations"), "conversations", role_key="from", text_key="value", known=NAMES
        )
        system = text_of(row, row.values, "system", required=False)
        if system and messages[0].role != "system":
            return Conversation((Message("system", system), *checked(row, messages, "conversations")), row.id)
        return Conversation(checked(row, messages, "conversations"), row.id)
