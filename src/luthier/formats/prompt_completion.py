"""Rows with a `prompt` and a `completion`: two texts, or two lists of {`role`, `content`} maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats._shared import PAIRED, checked, filled, no_tools, same_names, text_of, turns_of
from luthier.types import Conversation, Message, Row

__all__ = ["PromptCompletion"]


class PromptCompletion:
    """As texts: a user's message and the answer. As lists: messages; only those of the completion are trained."""

    class Config(ComponentConfig):
        kind: Literal["prompt_completion"] = "prompt_completion"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def recognises(cls, columns: frozenset[str], first: Mapping[str, Any]) -> bool:
        return {"prompt", "completion"} <= columns and not columns & PAIRED and not isinstance(first.get("label"), bool)

    def parse(self, row: Row) -> Conversation:
        no_tools(row)
        prompt, completion = row.values.get("prompt"), row.values.get("completion")
        if isinstance(prompt, (list, tuple)) or isinstance(completion, (list, tuple)):
            known = same_names()
            before = turns_of(row, prompt, "prompt", role_key="role", text_key="content", known=known, train=False)
            answer = turns_of(row, completion, "completion", role_key="role", text_key="content", known=known)
            return Conversation(checked(row, before + answer, "prompt + completion"), row.id)
        request = filled(
            row, text_of(row, row.values, "prompt"), "prompt", "a request (format text is for text without one)"
        )
        text = filled(
            row,
            text_of(row, row.values, "completion"),
            "completion",
            "an answer: an empty one trains only the stop token",
        )
        return Conversation((Message("user", request), Message("assistant", text)), row.id)
