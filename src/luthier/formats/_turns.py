"""Lists of messages in the rows of formats, as chat APIs and ShareGPT write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from luthier.component import did_you_mean
from luthier.errors import BadRow, excerpt
from luthier.formats._shared import found, missing, text_of
from luthier.formats._tools import call_of, calls_in_text, calls_of
from luthier.types import Message, Role, Row, ToolCall

Meaning = Literal["system", "user", "assistant", "tool", "tool_call"]
"""What the name of a role can mean; `tool_call` is an assistant's message whose text is the JSON of its calls."""

API_ROLES: dict[str, Meaning] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES: dict[str, Meaning] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "tool_call",
}
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
PARTS_OF_TEXT = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Spelling:
    """How a file writes a message: the keys of role and text, and the names of the roles."""

    role: str
    content: str
    roles: Mapping[str, Meaning]


API = Spelling("role", "content", API_ROLES)
SHAREGPT = Spelling("from", "value", SHAREGPT_ROLES)


def is_turns(value: object, spelling: Spelling) -> bool:
    """Whether a value looks like a list of messages of this spelling."""
    return isinstance(value, (list, tuple)) and bool(value) and is_turn(value[0], spelling)


def is_turn(value: object, spelling: Spelling) -> bool:
    return isinstance(value, Mapping) and {spelling.role, spelling.content} <= value.keys()


def turns_of(row: Row, value: object, field: str, spelling: Spelling, *, train: bool = True) -> list[Message]:
    """The messages of a list, none of them looked at for their order.

    A message may say `train: false`, or `weight: 0` as OpenAI's files do, or `loss: false`. Its text may be a list of parts of text. An
    assistant's message may have `tool_calls` (or the older `function_call`) and `reasoning_content`.

    Raises:
        BadRow: the value is no such list, or one of its parts is wrong.
    """
    keys = f"{{{spelling.role}, {spelling.content}}}"
    if not isinstance(value, (list, tuple)):
        wrong = missing(row, row.values, field) if value is None else found(value)
        raise BadRow(row.place, field, wrong, f"a list of {keys} maps")
    if not value:
        raise BadRow(row.place, field, "an empty list", "at least a user's and an assistant's message")
    return [turn_of(row, item, f"{field}[{index}]", spelling, train=train) for index, item in enumerate(value)]


def turn_of(row: Row, item: object, place: str, spelling: Spelling, *, train: bool = True) -> Message:
    """One message. Raises BadRow."""
    if not isinstance(item, Mapping):
        raise BadRow(row.place, place, found(item), f"a map with {spelling.role} and {spelling.content}")
    meaning = _meaning(row, item, place, spelling)
    role: Role = "assistant" if meaning == "tool_call" else meaning
    field = f"{place}.{spelling.content}"
    train = train and _trains(row, item, place)
    if meaning == "tool_call":
        text = _text(row, item, field, spelling, required=True)
        return Message(role, "", train, tool_calls=calls_in_text(row, text, field))
    calls: tuple[ToolCall, ...] = ()
    if item.get("tool_calls"):
        calls = calls_of(row, item["tool_calls"], f"{place}.tool_calls")
    elif item.get("function_call"):
        calls = (call_of(row, item["function_call"], f"{place}.function_call"),)
    if calls and role != "assistant":
        key = "tool_calls" if item.get("tool_calls") else "function_call"
        raise BadRow(row.place, f"{place}.{key}", f"in a message of role {role}", "calls in an assistant's message")
    text = _text(row, item, field, spelling, required=not calls)
    if role == "assistant":
        return Message(role, text, train, thinking=_thinking(row, item, place), tool_calls=calls)
    if role == "tool":
        name = text_of(row, item, "name", f"{place}.name", required=False)
        answers = text_of(row, item, "tool_call_id", f"{place}.tool_call_id", required=False)
        return Message(role, text, train, name=name, tool_call_id=answers)
    return Message(role, text, train)


def _meaning(row: Row, item: Mapping[str, Any], place: str, spelling: Spelling) -> Meaning:
    field, known = f"{place}.{spelling.role}", spelling.roles
    value = item.get(spelling.role)
    if value is None:
        raise BadRow(row.place, field, missing(row, item, spelling.role), " | ".join(known))
    if isinstance(value, str) and value in known:
        return known[value]
    near = did_you_mean(value, list(known)) if isinstance(value, str) else ""
    raise BadRow(row.place, field, excerpt(value), " | ".join(known), near)


def _text(row: Row, item: Mapping[str, Any], field: str, spelling: Spelling, *, required: bool) -> str:
    value = item.get(spelling.content)
    if not isinstance(value, (list, tuple)):
        return text_of(row, item, spelling.content, field, required=required)
    texts = []
    for index, part in enumerate(value):
        place = f"{field}[{index}]"
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, Mapping):
            raise BadRow(row.place, place, found(part), 'a map {"type": "text", "text": ...}')
        if part.get("type", "text") not in PARTS_OF_TEXT:
            wrong = "parts of type text: luthier learns from text alone"
            raise BadRow(row.place, f"{place}.type", excerpt(part["type"]), wrong, "leave the row out")
        texts.append(text_of(row, part, "text", f"{place}.text"))
    return "".join(texts)


def _thinking(row: Row, item: Mapping[str, Any], place: str) -> str:
    texts = {key: text_of(row, item, key, f"{place}.{key}", required=False) for key in THOUGHTS if item.get(key)}
    if len(set(texts.values())) > 1:
        raise BadRow(row.place, place, " and ".join(texts) + " differ", "one text of what was thought")
    return next(iter(texts.values()), "")


def _trains(row: Row, item: Mapping[str, Any], place: str) -> bool:
    flags = {key: item[key] for key in ("train", "weight", "loss") if item.get(key) is not None}
    for key, value in flags.items():
        if value not in (0, 1):
            raise BadRow(row.place, f"{place}.{key}", excerpt(value), "0 or 1" if key == "weight" else "true or false")
    return all(flags.values())


def meanings(roles: Mapping[str, str] | None, usual: Mapping[str, Meaning]) -> Mapping[str, Meaning]:
    """The names that a configuration gives, or the usual ones."""
    return usual if roles is None else cast(Mapping[str, Meaning], roles)
