"""Formats: what each recognises, what it makes of a row, and which rows it refuses, with the field and no more than 80
characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import component
from luthier.data.recognise import best_formats
from luthier.errors import BadRow
from luthier.types import Conversation, Example, Preference, Prompt, Row, Text
from tests.helpers.properties import examples

KINDS = ("alpaca", "sharegpt", "messages", "prompt_completion", "text", "preference", "feedback", "prompts")


def parse(kind: str, values: Mapping[str, Any]) -> Any:
    cls = component.load("formats", kind)
    return cls(cls.Config(kind=kind)).parse(Row(values, "train.jsonl", 7))


def turns(example: Example) -> list[tuple[str, str, bool]]:
    assert isinstance(example, Conversation)
    return [(message.role, message.content, message.train) for message in example.messages]


def chat(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


GOOD: list[tuple[str, dict[str, Any], list[tuple[str, str, bool]]]] = [
    (
        "alpaca",
        {"instruction": "Add", "input": "1 2", "output": " 3 "},
        [("user", "Add\n1 2", True), ("assistant", " 3 ", True)],
    ),
    ("alpaca", {"instruction": "Add", "output": "3", "input": None}, [("user", "Add", True), ("assistant", "3", True)]),
    (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        [
            ("system", "s", True),
            ("user", "a", True),
            ("assistant", "b", True),
            ("user", "c", True),
            ("assistant", "d", True),
        ],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        [("system", "s", True), ("user", "a", True), ("assistant", "b", True)],
    ),
    (
        "messages",
        {
            "messages": [
                *chat(("system", ""), ("user", "a")),
                {"role": "assistant", "content": "b", "weight": 0},
                *chat(("user", "c")),
                {"role": "assistant", "content": "d", "train": True},
            ]
        },
        [("user", "a", True), ("assistant", "b", False), ("user", "c", True), ("assistant", "d", True)],
    ),
    (
        "messages",
        {"messages": chat(("user", "a"), ("assistant", "f(b)"), ("tool", "c"), ("tool", "d"), ("assistant", "e"))},
        [
            ("user", "a", True),
            ("assistant", "f(b)", True),
            ("tool", "c", True),
            ("tool", "d", True),
            ("assistant", "e", True),
        ],
    ),
    ("prompt_completion", {"prompt": "a", "completion": "b"}, [("user", "a", True), ("assistant", "b", True)]),
    (
        "prompt_completion",
        {"prompt": chat(("user", "a"), ("assistant", "b"), ("user", "c")), "completion": chat(("assistant", "d"))},
        [("user", "a", False), ("assistant", "b", False), ("user", "c", False), ("assistant", "d", True)],
    ),
]


@pytest.mark.parametrize(("kind", "values", "wanted"), GOOD)
def test_a_row_becomes_a_conversation(kind: str, values: dict[str, Any], wanted: list[tuple[str, str, bool]]) -> None:
    assert turns(parse(kind, values)) == wanted


def test_text_is_kept_as_it_is() -> None:
    assert parse("text", {"text": " a\n"}) == Text(" a\n", "train.jsonl:7")


@pytest.mark.parametrize(
    ("kind", "values", "field", "words"),
    [
        ("alpaca", {"instruction": "a", "output": ""}, "output", "empty one trains only"),
        ("alpaca", {"instruction": "a", "output": " \n"}, "output", "found|answer"),
        ("alpaca", {"instruction": "a", "output": None}, "output", "null"),
        ("alpaca", {"instruction": "a"}, "output", "missing"),
        ("alpaca", {"instruction": "", "input": "", "output": "b"}, "instruction", "a request"),
        ("alpaca", {"instruction": 3, "output": "b"}, "instruction", "a number"),
        ("alpaca", {"instruction": "a", "output": ["b"]}, "output", "a list"),
        ("alpaca", {"instruction": "a", "output": True}, "output", "true or false"),
        ("alpaca", {"instruction": "a", "output": "b\0"}, "output", "NUL"),
        ("alpaca", {"instruction": "a", "output": "b\ud800"}, "output", "surrogate"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history[0]", "pair"),
        ("alpaca", {"instruction": "a", "output": "b", "history": "x"}, "history", "list"),
        ("sharegpt", {"conversations": "a"}, "conversations", "a list"),
        ("sharegpt", {"conversations": []}, "conversations", "empty list"),
        ("sharegpt", {"conversations": [3]}, "conversations[0]", "a map"),
        (
            "sharegpt",
            {"conversations": [{"from": "humann", "value": "a"}]},
            "conversations[0].from",
            'did you mean "human"',
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, "conversations", "role user"),
        (
            "sharegpt",
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "conversations[0]",
            "role assistant at the start",
        ),
        ("alpaca", {"instruction": "a", "output": "b", "images": ["c.png"]}, "images", "text alone"),
        ("messages", {"messages": chat(("user", "a"), ("assistant", "b")), "system": 3}, "system", "a number"),
        (
            "messages",
            {"messages": chat(("user", "a"), ("asistant", "b"))},
            "messages[1].role",
            'did you mean "assistant"',
        ),
        ("messages", {"messages": chat(("User", "a"), ("assistant", "b"))}, "messages[0].role", 'did you mean "user"'),
        (
            "messages",
            {"messages": chat(("user", "a"), ("user", "b"), ("assistant", "c"))},
            "messages[1]",
            "after one of role user",
        ),
        (
            "messages",
            {"messages": chat(("user", "a"), ("assistant", "b"), ("assistant", "c"))},
            "messages[2]",
            "after one of role assistant",
        ),
        (
            "messages",
            {"messages": chat(("user", "a"), ("system", "b"), ("assistant", "c"))},
            "messages[1]",
            "role system after",
        ),
        ("messages", {"messages": chat(("system", "a"), ("system", "b"))}, "messages[1]", "role system after"),
        ("messages", {"messages": chat(("system", "a"))}, "messages", "last message has role system"),
        ("messages", {"messages": chat(("system", " "))}, "messages", "no messages"),
        (
            "messages",
            {"messages": chat(("user", "a"), ("tool", "b"), ("assistant", "c"))},
            "messages[1]",
            "role tool after",
        ),
        ("messages", {"messages": chat(("user", "a"), ("assistant", " "))}, "messages[1]", "empty"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
            "messages[0].content[1].type",
            "parts of type text",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            "messages",
            "no assistant's message is trained",
        ),
        ("messages", {"messages": [{"role": "user", "content": "a", "weight": 2}]}, "messages[0].weight", "0 or 1"),
        ("prompt_completion", {"prompt": " ", "completion": "b"}, "prompt", "a request"),
        ("prompt_completion", {"prompt": "a", "completion": chat(("assistant", "b"))}, "prompt", "a list of"),
        ("text", {"text": ""}, "text", "''"),
        ("text", {"text": {"a": 1}}, "text", "a map"),
    ],
)
def test_a_bad_row_names_place_and_field(kind: str, values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse(kind, values)
    assert caught.value.where == f"train.jsonl:7  {field}"
    assert any(word in str(caught.value) for word in words.split("|")), str(caught.value)


def test_no_more_than_80_characters_of_a_row_are_shown() -> None:
    secret = "x" * 30 + "SECRET" * 40
    for values in (
        {"instruction": [secret], "output": "b"},
        {secret: 1},
        {"instruction": {secret: secret}, "output": "b"},
    ):
        with pytest.raises(BadRow) as caught:
            parse("alpaca", values)
        assert max(len(line) for line in str(caught.value).split("\n")) < 160


TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b", "text": "both"}, "alpaca"),
        ({"instruction": "a", "output": "b", "prompt": "both", "label": "sports"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}], "tools": "[]"}, "sharegpt"),
        ({"messages": [TURN], "id": 3, "tools": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "prompt": "a"}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": [TURN], "completion": [TURN]}, "prompt_completion"),
        ({"text": "a", "id": 3}, "text"),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {}, "rejected": {}}, "preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "messages": [TURN]}, "preference"),
        ({"chosen": [TURN], "rejected": [TURN]}, "preference"),
        ({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}, "preference"),
        ({"prompt": "a", "answers": ["b", "c"]}, "preference"),
        ({"messages": [TURN], "label": True}, "feedback"),
        ({"messages": [TURN], "label": 1}, "feedback"),
        ({"messages": [TURN], "label": "sports"}, "messages"),
        ({"messages": [TURN], "label": None}, None),
        ({"prompt": "a", "completion": "b", "label": False}, "feedback"),
        ({"instruction": "a", "output": "b", "label": "true"}, "feedback"),
        ({"instruction": "a", "output": "b", "label": "0"}, "feedback"),
        ({"prompt": "a", "completion": "b", "label": "1"}, "feedback"),
        ({"prompt": "a", "completion": "b", "label": ""}, None),
        ({"prompt": "a", "completion": "b", "label": "2"}, "prompt_completion"),
        ({"prompt": "a"}, "prompts"),
        ({"prompt": [TURN], "solution": "42", "answer": "b"}, "prompts"),
        ({"prompt": "a", "response": "b"}, None),
        ({"question": "a", "answer": "b"}, None),
        ({"messages": "a"}, None),
        ({"instruction": "a", "output": "b", "chosen": "c"}, None),
        ({"text": "a", "response": "b"}, None),
        ({"text": "a", "label": 1}, "text"),
        ({}, None),
    ],
)
def test_exactly_one_format_recognises_a_row(first: dict[str, Any], kind: str | None) -> None:
    assert set(component.listing("formats")) == set(KINDS)
    assert best_formats(Row(first, "made.jsonl", 1)) == ([] if kind is None else [kind])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(("user", "assistant", "human", "gpt", "function_call", "tool", '{"name": "f", "arguments": {}}')),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ("role", "content", "from", "value", "weight", "tool_calls", "name", "arguments", "function")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
COLUMNS = ("instruction", "input", "output", "system", "history", "conversations", "messages", "prompt", "completion")
COLUMNS += ("text", "tools", "chosen", "rejected", "answers", "label", "images")
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("system", "user", "assistant", "tool")), "content": st.sampled_from(("a", "b", ""))},
        optional={"tool_calls": st.just([{"name": "f", "arguments": "{}"}]), "weight": st.sampled_from((0, 1))},
    ),
    max_size=6,
)


@pytest.mark.prove
@examples(600)
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(COLUMNS), JSON | TURNS, max_size=6))
def test_any_row_is_used_or_refused_as_a_bad_row(kind: str, values: dict[str, Any]) -> None:
    try:
        example = parse(kind, values)
    except BadRow as error:
        assert error.where.startswith("train.jsonl:7")  # noqa: PT017 - most rows raise, some do not
        return
    if isinstance(example, Text):
        return
    if isinstance(example, Preference):
        assert example.prompt[-1].role in ("user", "tool")
        assert len(set(example.answers)) == len(example.answers) >= 2
        assert all(answer[-1].role == "assistant" for answer in example.answers)
    elif isinstance(example, Prompt):
        assert example.messages[-1].role in ("user", "tool")
    else:
        assert example.messages[-1].role == "assistant"


def test_a_tools_result_needs_a_call_before_it() -> None:
    talk = chat(("user", "a"), ("assistant", "Good day."), ("tool", "c"), ("assistant", "e"))
    with pytest.raises(BadRow, match="though no tool was called"):
        parse("messages", {"messages": talk})
    for call in ('{"name": "f", "arguments": {}}', "<tool_call>f</tool_call>", "Action: f", "f(1)"):
        talk[1]["content"] = call
        assert len(turns(parse("messages", {"messages": talk}))) == 4


def test_an_empty_system_message_is_none() -> None:
    talk = chat(("system", " "), ("user", "a"), ("assistant", "b"))
    assert turns(parse("messages", {"messages": talk}))[0][0] == "user"
    assert turns(parse("messages", {"messages": talk, "system": "Be brief."}))[0] == ("system", "Be brief.", True)


def test_what_others_call_train_and_tools() -> None:
    talk = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    talk[1]["loss"] = False
    assert [train for role, _, train in turns(parse("messages", {"messages": talk})) if role == "assistant"] == [
        False,
        True,
    ]
    assert '"name": "f"' in parse("messages", {"messages": talk, "functions": [{"name": "f"}]}).tools
