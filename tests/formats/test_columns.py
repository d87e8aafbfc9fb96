"""The keys of the formats: each renames a column of the file, or a key of its messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier import component
from luthier.component import ComponentConfig
from luthier.errors import LuthierError
from luthier.types import Row

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
OTHERS = {"system": "s", "tools": TOOLS}
ALPACA = {"instruction": "a", "input": "i", "output": "b", "history": [["c", "d"]], **OTHERS}
ASKED = {"prompt": "a", "input": "i", "history": [["c", "d"]], **OTHERS}

WHOLE: dict[str, list[dict[str, Any]]] = {
    "alpaca": [ALPACA],
    "sharegpt": [{"conversations": SHARED, **OTHERS}],
    "messages": [{"messages": TURNS, **OTHERS}],
    "prompt_completion": [{"prompt": "a", "completion": "b", **OTHERS}],
    "text": [{"text": "a"}],
    "preference": [
        {**ASKED, "answers": ["b", "c"]},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": "c", **OTHERS},
    ],
    "feedback": [{**ASKED, "completion": "b", "label": True}, {"prompt": TURNS, "label": False}],
    "prompts": [ASKED, {"prompt": TURNS[:1]}],
}
"""Rows of each format in which all its keys matter to one of them."""

IN_MESSAGES = {"role", "content", "from", "value"}
NAMED = {"prompt": "prompt", "input": "input", "history": "history", "completion": "completion"}
"""Keys without a default of their own: what they are set to in these rows."""


def keys_of(kind: str) -> list[str]:
    fields = component.load("formats", kind).Config.model_fields.items()
    return [field.alias or name for name, field in fields if name not in ("kind", "roles")]


def config_of(kind: str, row: dict[str, Any], **more: Any) -> ComponentConfig:
    cls: type[ComponentConfig] = component.load("formats", kind).Config
    given = {key: name for key, name in NAMED.items() if key in row and key in keys_of(kind)}
    if kind in ("alpaca", "prompt_completion"):
        given = {}
    return cls(kind=kind, **{**given, **more})


def parsed(kind: str, row: dict[str, Any], config: ComponentConfig) -> Any:
    return component.load("formats", kind)(config).parse(Row(row, "a.jsonl", 1))


def renamed(value: Any, key: str, other: str) -> Any:
    """`value` with a key of the messages in it renamed."""
    if isinstance(value, list):
        return [renamed(item, key, other) for item in value]
    if isinstance(value, dict):
        return {other if name == key else name: item for name, item in value.items()}
    return value


CASES = [(kind, key) for kind in WHOLE for key in keys_of(kind)]


@pytest.mark.parametrize(("kind", "key"), CASES)
def test_a_key_names_a_column(kind: str, key: str) -> None:
    """With the column renamed the row is the same under the key, and another one, or a bad one, without it."""
    matters = False
    for row in WHOLE[kind]:
        if key in IN_MESSAGES:
            other = {
                column: renamed(value, key, "mine") if column != "tools" else value for column, value in row.items()
            }
        else:
            other = {"mine" if column == key else column: value for column, value in row.items()}
        if other == row:
            continue
        wanted = parsed(kind, row, config_of(kind, row))
        assert parsed(kind, other, config_of(kind, row, **{key: "mine"})) == wanted
        try:
            matters = matters or parsed(kind, other, config_of(kind, row)) != wanted
        except LuthierError:
            matters = True
    assert matters


@pytest.mark.parametrize(
    "kind", [kind for kind in WHOLE if "roles" in component.load("formats", kind).Config.model_fields]
)
def test_roles_may_have_any_names(kind: str) -> None:
    call = json.dumps({"name": "f", "arguments": {}})
    spoken = [("boss", "s"), ("me", "a"), ("asks", call), ("says", "1"), ("it", "b")]
    keys = ("from", "value") if kind == "sharegpt" else ("role", "content")
    turns = [dict(zip(keys, turn, strict=True)) for turn in spoken]
    roles = {"boss": "system", "me": "user", "it": "assistant", "says": "tool", "asks": "tool_call"}
    column = {"sharegpt": "conversations", "messages": "messages"}.get(kind, "prompt")
    rows: dict[str, dict[str, Any]] = {
        "preference": {"prompt": turns[:4], "chosen": turns[4:], "rejected": "c"},
        "feedback": {"prompt": turns, "label": True},
        "prompts": {"prompt": turns[:4]},
    }
    row = rows.get(kind, {column: turns})
    found = parsed(kind, row, component.load("formats", kind).Config(kind=kind, roles=roles))
    before = found.prompt if kind == "preference" else found.messages[:4]
    assert [message.role for message in before] == ["system", "user", "assistant", "tool"]
    assert before[2].tool_calls[0].name == "f"
    with pytest.raises(LuthierError, match=r"role|from"):
        parsed(kind, row, component.load("formats", kind).Config(kind=kind))
