"""What is asked, for the formats in which answers stand apart from it: preference, feedback, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.component import ComponentConfig
from luthier.errors import BadRow, excerpt
from luthier.formats._history import history_of
from luthier.formats._shared import Column, filled, numbered, ordered, text_of, with_system
from luthier.formats._turns import API, SHAREGPT, Meaning, Spelling, is_turn, turn_of, turns_of
from luthier.types import Message, Row

REQUESTS = ("prompt", "messages", "conversations", "instruction", "question")
"""Columns that hold what is asked, where the configuration names none."""

ANSWERS = ("completion", "output", "response")
"""Columns that hold an answer to it."""


class RequestConfig(ComponentConfig):
    """The columns and names of what is asked."""

    prompt: Column | None = None
    """Column of the request: a text, or messages. Default: the one of `prompt`, `messages`, `conversations`, `instruction`,
    `question` that a row has."""
    input: Column | None = None
    """Column of a text that follows the request on a new line. Default: `input`, where the request is `instruction`."""
    history: Column | None = None
    """Column of earlier [request, answer] pairs. Default: `history`, where the request is `instruction`."""
    system: Column | None = "system"
    """Column of the system text; a system message among the messages goes before it."""
    tools: Column | None = "tools"
    """Column of the tools on offer: a list of schemas, or JSON text of one."""
    role: Column | None = None
    """Key of a message's role. Default: `role` or `from`, as a message has it."""
    content: Column | None = None
    """Key of a message's text. Default: `content` or `value`, as a message has it."""
    roles: dict[str, Meaning] | None = None
    """The names of roles in the file and what each means: `system`, `user`, `assistant`, `tool`, or `tool_call` (JSON text of
    an assistant's calls). Default: the usual names."""


def spelling_of(config: RequestConfig, value: object) -> Spelling:
    """How the messages of a value are written."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    usual = SHAREGPT if is_turn(first, SHAREGPT) else API
    roles = {**API.roles, **SHAREGPT.roles} if config.roles is None else config.roles
    return Spelling(config.role or usual.role, config.content or usual.content, roles)


def request_column(row: Row, config: RequestConfig) -> str:
    """The column of the request. Raises BadRow where a row has none."""
    if config.prompt is not None:
        return config.prompt
    column = next((name for name in REQUESTS if row.values.get(name) is not None), None)
    if column is None:
        wrong = f"missing; the keys are {excerpt(sorted(map(str, row.values)))}"
        raise BadRow(row.place, "prompt", wrong, "a request in one of " + ", ".join(REQUESTS))
    return column


def request_of(row: Row, config: RequestConfig, column: str) -> tuple[list[Message], list[str]]:
    """The messages of what is asked and their places, not looked at for their order. Raises BadRow."""
    value = row.values.get(column)
    if isinstance(value, (list, tuple)):
        messages = turns_of(row, value, column, spelling_of(config, value))
        return with_system(row, config.system, messages, numbered(column, messages))
    instruction = config.prompt is None and column == "instruction"
    parts = [text_of(row, row.values, column)]
    parts.append(text_of(row, row.values, config.input or ("input" if instruction else None), required=False))
    request = filled(row, "\n".join(part for part in parts if part), column, "a request")
    messages, places = history_of(row, config.history or ("history" if instruction else None))
    return with_system(row, config.system, [*messages, Message("user", request)], [*places, column])


def asked(row: Row, messages: Sequence[Message], places: Sequence[str], field: str) -> tuple[Message, ...]:
    """The messages, if they are in order and an answer may follow them. Raises BadRow."""
    out = ordered(row, messages, places)
    if not out or out[-1].role not in ("user", "tool"):
        wrong = f"the last message has role {out[-1].role}" if out else "no messages"
        raise BadRow(
            row.place, field, wrong, "a user's message (or a tool's result) at the end, for an answer to follow"
        )
    return tuple(out)


def answer_of(row: Row, config: RequestConfig, column: str) -> tuple[list[Message], list[str]]:
    """The messages of an answer and their places: a text, a message, or a list of messages. Raises BadRow."""
    return answer_in(row, config, row.values, column, column)


def answer_in(
    row: Row, config: RequestConfig, values: Mapping[str, Any], key: str, place: str
) -> tuple[list[Message], list[str]]:
    """The same for an answer that stands in `values`, at `place` of the row. Raises BadRow."""
    value = values.get(key)
    if isinstance(value, (list, tuple)):
        messages = turns_of(row, value, place, spelling_of(config, value))
        return messages, numbered(place, messages)
    if isinstance(value, Mapping):
        return [turn_of(row, value, place, spelling_of(config, value))], [place]
    return [Message("assistant", text_of(row, values, key, place))], [place]


def answered(
    row: Row, prompt: Sequence[Message], messages: Sequence[Message], places: Sequence[str], field: str
) -> tuple[Message, ...]:
    """The messages of an answer, if they follow the prompt in order and end with an assistant's. Raises BadRow."""
    out = ordered(row, messages, places, previous=prompt[-1].role)
    if not out or out[-1].role != "assistant":
        wrong = f"the last message has role {out[-1].role}" if out else "no messages"
        raise BadRow(row.place, field, wrong, "an assistant's message at the end")
    return tuple(out)
