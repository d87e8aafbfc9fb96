"""Rows with a `prompt` and a `completion`: two texts, or two lists of {`role`, `content`} maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.formats import Format
from luthier.formats._shared import (
    AN_ANSWER,
    Column,
    conversation,
    filled,
    numbered,
    only_text,
    text_of,
    with_system,
)
from luthier.formats._tools import tools_of
from luthier.formats._turns import API, turns_of
from luthier.types import Conversation, Message, Row

__all__ = ["PromptCompletion"]


class PromptCompletion(Format):
    """As texts: a user's message and the answer. As lists: messages; only those of the completion are trained."""

    columns = ("prompt", "completion")

    class Config(ComponentConfig):
        kind: Literal["prompt_completion"] = "prompt_completion"
        prompt: Column = "prompt"
        """Column of the request: a text, or messages."""
        completion: Column = "completion"
        """Column of the answer: a text, or messages."""
        system: Column | None = "system"
        """Column of the system text; a system message in the prompt goes before it."""
        tools: Column | None = "tools"
        """Column of the tools on offer: a list of schemas, or JSON text of one."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        return 2 if {"prompt", "completion"} <= columns else 0

    def parse(self, row: Row) -> Conversation:
        only_text(row)
        names, field = self.config, f"{self.config.prompt} + {self.config.completion}"
        prompt, completion = row.values.get(names.prompt), row.values.get(names.completion)
        if isinstance(prompt, (list, tuple)) or isinstance(completion, (list, tuple)):
            before = turns_of(row, prompt, names.prompt, API, train=False)
            answer = turns_of(row, completion, names.completion, API)
            messages = [*before, *answer]
            places = [*numbered(names.prompt, before), *numbered(names.completion, answer)]
        else:
            expected = "a request (format text is for text without one)"
            request = filled(row, text_of(row, row.values, names.prompt), names.prompt, expected)
            text = filled(row, text_of(row, row.values, names.completion), names.completion, AN_ANSWER)
            messages, places = [Message("user", request), Message("assistant", text)], [names.prompt, names.completion]
        messages, places = with_system(row, names.system, messages, places)
        return Conversation(conversation(row, messages, places, field), row.id, tools=tools_of(row, names.tools))
