"""Calls of tools and thoughts: as templates get them, and how to find them again in what a template wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from luthier.types import Message, ToolCall

END_OF_THOUGHT = "</think>"
"""How models that think write where it ends; thoughts may stand in an answer's text up to it."""
MARKS_OF_THOUGHT = ("<think>", END_OF_THOUGHT)

Change = Callable[[str], str]


def has_extras(message: Message) -> bool:
    """Whether a message is more than a role and a text."""
    return bool(message.tool_calls or message.thinking or message.name or message.tool_call_id)


def extras_of(message: Message, change: Change | None = None) -> str:
    """What a template gets of a message beside role and content, as JSON: the keys of transformers.

    Args:
        change: is applied to every text in it (not to the names of arguments).
    """
    edit: Change = change if change is not None else lambda text: text
    found: dict[str, Any] = {}
    if message.thinking:
        found["reasoning_content"] = edit(message.thinking)
    if message.tool_calls:
        found["tool_calls"] = [_call(call, edit) for call in message.tool_calls]
    found |= {key: edit(text) for key in ("name", "tool_call_id") if (text := getattr(message, key))}
    return json.dumps(found, ensure_ascii=False)


def changed_tools(tools: str, change: Change) -> str:
    """The list of tools with `change` applied to every text in it."""
    return json.dumps(_changed(json.loads(tools), change), ensure_ascii=False)


def _call(call: ToolCall, edit: Change) -> dict[str, Any]:
    function = {"name": edit(call.name), "arguments": _changed(json.loads(call.arguments), edit)}
    return {"type": "function", **({"id": edit(call.id)} if call.id else {}), "function": function}


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return value


def leaves(value: Any) -> Iterator[Any]:
    """The keys, texts, numbers and truth values of a tree of JSON, in order."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def forms(value: Any) -> set[str]:
    """The ways in which a template may write a value: as it is, as JSON, and trimmed."""
    if not isinstance(value, str):
        return {str(value), json.dumps(value)}
    text = value.strip()
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


def is_shown(value: Any, text: str) -> bool:
    return any(form in text for form in forms(value))


def hidden_part(call: ToolCall, text: str) -> str | None:
    """What of a call does not appear in `text`; None where all of it does."""
    wanted = [call.name, *leaves(json.loads(call.arguments))]
    return next((str(value) for value in wanted if not is_shown(value, text)), None)


def hidden_tool(tools: str, text: str) -> str | None:
    """The first tool of which name, description or a parameter does not appear in `text`; None where all are shown."""
    for tool in json.loads(tools):
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {}
        wanted = [function.get("name", ""), function.get("description", ""), *(parameters.get("properties") or {})]
        if not all(is_shown(value, text) for value in wanted):
            return str(function.get("name", ""))
    return None
