"""Calls of tools, their results, and thoughts: the ways in which files write them give the same messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier import component
from luthier.errors import BadRow
from luthier.types import Conversation, Message, Row, ToolCall

SCHEMA = {"name": "add", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}
WRAPPED = {"type": "function", "function": SCHEMA}
ARGUMENTS = {"b": [2], "a": "é"}
CALL = ToolCall("add", '{"b": [2], "a": "é"}')


def parse(kind: str, values: dict[str, Any]) -> Conversation:
    cls = component.load("formats", kind)
    example = cls(cls.Config(kind=kind)).parse(Row(values, "a.jsonl", 3))
    assert isinstance(example, Conversation)
    return example


def api(*middle: dict[str, Any], **more: Any) -> dict[str, Any]:
    start, end = {"role": "user", "content": "2 + 1?"}, {"role": "assistant", "content": "3"}
    return {"messages": [start, *middle, end], **more}


def calling(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


RESULT = {"role": "tool", "content": "3"}


def refused(kind: str, values: dict[str, Any]) -> BadRow:
    with pytest.raises(BadRow) as caught:
        parse(kind, values)
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "add", "arguments": ARGUMENTS}},
        {"type": "function", "function": {"name": "add", "arguments": json.dumps(ARGUMENTS)}},
        {"name": "add", "arguments": ARGUMENTS},
        {"name": "add", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False, separators=(",", ":"))},
    ],
)
def test_arguments_as_a_map_or_as_text_are_one_call(call: dict[str, Any]) -> None:
    whole = parse("messages", api(calling(call), RESULT))
    assert whole.messages[1] == Message("assistant", "", tool_calls=(CALL,))
    assert whole.messages[2] == Message("tool", "3")
    one = parse("messages", api({"role": "assistant", "content": "", "function_call": call}, RESULT))
    assert one.messages == whole.messages
    turns = [
        {"from": "human", "value": "2 + 1?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3"},
    ]
    assert parse("sharegpt", {"conversations": turns}).messages == whole.messages


def test_several_calls_and_their_results() -> None:
    calls = [{"id": name, "function": {"name": "add", "arguments": ""}} for name in ("x", "y")]
    results = [{**RESULT, "tool_call_id": name, "name": "add"} for name in ("y", "x")]
    found = parse("messages", api(calling(*calls, reasoning_content="I add."), *results)).messages
    expected = (ToolCall("add", "{}", "x"), ToolCall("add", "{}", "y"))
    assert found[1] == Message("assistant", "", thinking="I add.", tool_calls=expected)
    assert found[2:4] == (
        Message("tool", "3", name="add", tool_call_id="y"),
        Message("tool", "3", name="add", tool_call_id="x"),
    )
    text = json.dumps([{"name": "add", "arguments": {}}] * 2)
    turns = [{"from": "human", "value": "?"}, {"from": "function_call", "value": text}]
    assert parse("sharegpt", {"conversations": turns}).messages[1].tool_calls == (ToolCall("add", "{}"),) * 2


def test_tools_without_parameters_are_taken() -> None:
    for parameters in (None, [], {}, {"properties": None}, {"properties": []}):
        assert parse("messages", api(tools=[{"name": "f", "parameters": parameters}])).tools


@pytest.mark.parametrize(
    "tools",
    [
        [SCHEMA],
        [WRAPPED],
        json.dumps([SCHEMA]),
        json.dumps([WRAPPED]),
        [json.dumps(SCHEMA)],
        SCHEMA,
        json.dumps(SCHEMA),
    ],
)
@pytest.mark.parametrize("kind", ["messages", "sharegpt", "alpaca", "prompt_completion"])
def test_tools_on_offer_are_written_one_way(kind: str, tools: Any) -> None:
    rows: dict[str, dict[str, Any]] = {
        "messages": api({"role": "assistant", "content": "?"}, {"role": "user", "content": "!"}),
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "alpaca": {"instruction": "a", "output": "b"},
        "prompt_completion": {"prompt": "a", "completion": "b"},
    }
    assert parse(kind, {**rows[kind], "tools": tools}).tools == json.dumps([WRAPPED])
    for none in (None, "", "[]", [], {}):
        assert parse(kind, {**rows[kind], "tools": none}).tools == ""


def test_a_developer_speaks_for_the_system_and_texts_come_in_parts() -> None:
    parts = [{"type": "text", "text": "a "}, "b", {"type": "input_text", "text": "c"}]
    turns = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    found = parse("messages", {"messages": [*turns, {"role": "assistant", "content": "d", "thinking": "t"}]}).messages
    assert found == (Message("system", "s"), Message("user", "a bc"), Message("assistant", "d", thinking="t"))


def test_the_own_system_message_goes_before_the_column() -> None:
    own = {"messages": [{"role": "system", "content": "own"}, *api()["messages"]], "system": "column"}
    assert parse("messages", own).messages[0] == Message("system", "own")
    assert parse("messages", api(system="column")).messages[0] == Message("system", "column")


@pytest.mark.parametrize(
    ("kind", "values", "field", "words"),
    [
        ("messages", api(calling(3), RESULT), "messages[1].tool_calls[0]", "a map"),
        ("messages", api(calling({"name": 3}), RESULT), "messages[1].tool_calls[0].name", "name of the tool"),
        ("messages", api(calling({}), RESULT), "messages[1].tool_calls[0].name", "missing"),
        (
            "messages",
            api(calling({"name": "f", "arguments": "{"})),
            "messages[1].tool_calls[0].arguments",
            "broken JSON",
        ),
        ("messages", api(calling({"name": "f", "arguments": "[1]"})), "messages[1].tool_calls[0].arguments", "a map"),
        (
            "messages",
            api(calling({"name": "f", "arguments": '{"a": 1, "a": 2}'})),
            "messages[1].tool_calls[0].arguments",
            "'a' stands in it twice",
        ),
        (
            "messages",
            api(calling({"name": "f", "arguments": {"a": float("nan")}})),
            "messages[1].tool_calls[0].arguments",
            "JSON can hold",
        ),
        (
            "messages",
            api({"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}),
            "messages[1].tool_calls",
            "role user",
        ),
        ("messages", api(RESULT), "messages[1]", "role tool after one of role user"),
        (
            "messages",
            api(calling({"name": "f", "id": "x"}), {**RESULT, "tool_call_id": "z"}),
            "messages[2].tool_call_id",
            "'x'",
        ),
        ("messages", api(calling()), "messages[1].content", "null"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add(1)"}]},
            "conversations[1].value",
            "broken JSON",
        ),
        ("messages", api(tools=3), "tools", "a list of tools"),
        ("messages", api(tools="add"), "tools", "broken JSON"),
        ("messages", api(tools=[{"parameters": {}}]), "tools[0].name", "missing"),
        ("messages", api(tools=[{"name": "f", "parameters": [1]}]), "tools[0].parameters", "a map"),
        (
            "messages",
            api(tools=[{"function": {"name": "f", "parameters": "none"}}]),
            "tools[0].function.parameters",
            "a map",
        ),
        (
            "messages",
            api(tools=json.dumps([{"name": "f", "parameters": {"properties": 3}}])),
            "tools[0].parameters.properties",
            "a map",
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b", "thinking": "c", "reasoning": "d"},
                ]
            },
            "messages[1]",
            "differ",
        ),
    ],
)
def test_what_is_no_call_is_refused(kind: str, values: dict[str, Any], field: str, words: str) -> None:
    error = refused(kind, values)
    assert error.where == f"a.jsonl:3  {field}"
    assert words in str(error)
