"""Preferences, feedback and prompts: one meaning, however a file spells it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier import component
from luthier.errors import BadRow
from luthier.types import Feedback, Message, Preference, Prompt, Row


def parse(kind: str, values: dict[str, Any], **config: Any) -> Any:
    cls = component.load("formats", kind)
    return cls(cls.Config(kind=kind, **config)).parse(Row(values, "a.jsonl", 3))


def api(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def shared(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": content} for role, content in pairs]


ASKED = (Message("user", "q"),)
GOOD, POOR = (Message("assistant", "good"),), (Message("assistant", "poor"),)
PAIR = Preference(ASKED, (GOOD, POOR), "a.jsonl:3")


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "q", "chosen": "good", "rejected": "poor"},
        {"question": "q", "chosen": "good", "rejected": "poor"},
        {"instruction": "q", "input": "", "output": "good", "chosen": "good", "rejected": "poor"},
        {"prompt": api(("user", "q")), "chosen": api(("assistant", "good")), "rejected": api(("assistant", "poor"))},
        {"conversations": shared(("human", "q")), "chosen": shared(("gpt", "good"))[0], "rejected": "poor"},
        {
            "chosen": api(("user", "q"), ("assistant", "good")),
            "rejected": api(("user", "q"), ("assistant", "poor")),
        },
        {
            "prompt": "q",
            "chosen": api(("user", "q"), ("assistant", "good")),
            "rejected": api(("user", "q"), ("assistant", "poor")),
            "messages": api(("user", "q"), ("assistant", "good")),
        },
        {
            "prompt": api(("user", "q")),
            "chosen": api(("user", "q"), ("assistant", "good")),
            "rejected": api(("user", "q"), ("assistant", "poor")),
        },
        {"prompt": "q", "answers": ["good", "poor"]},
        {"prompt": "q", "answers": [api(("assistant", "good")), api(("assistant", "poor"))[0]]},
    ],
)
def test_a_pair_is_one_thing_in_all_spellings(values: dict[str, Any]) -> None:
    assert parse("preference", values) == PAIR


def test_a_ranked_list_keeps_its_order_and_what_stands_before() -> None:
    values = {"instruction": "q", "input": "i", "history": [["a", "b"]], "system": "s", "answers": ["x", "y", "z"]}
    found = parse("preference", values)
    assert [answer[0].content for answer in found.answers] == ["x", "y", "z"]
    assert (found.chosen[0].content, found.rejected[0].content) == ("x", "z")
    assert [message.content for message in found.prompt] == ["s", "a", "b", "q\ni"]


def test_answers_of_several_turns() -> None:
    more = api(("user", "q"), ("assistant", "a"), ("user", "r"))
    values = {"chosen": [*more, *api(("assistant", "x"))], "rejected": [*more, *api(("assistant", "y"))], "system": "s"}
    found = parse("preference", values)
    assert [message.content for message in found.prompt] == ["s", "q", "a", "r"]
    calls = [{"role": "assistant", "tool_calls": [{"name": "f"}]}, *api(("tool", "1"), ("assistant", "x"))]
    assert len(parse("preference", {"prompt": "q", "chosen": calls, "rejected": "y"}).chosen) == 3


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "the same answer as chosen"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected", "null"),
        ({"prompt": "q", "chosen": "a"}, "rejected", "missing"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected", "empty"),
        ({"chosen": "a", "rejected": "b"}, "prompt", "missing"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt", "a request"),
        ({"prompt": "q", "answers": ["a"]}, "answers", "two or more"),
        ({"prompt": "q", "answers": ["a", "b", "a"]}, "answers[2]", "the same answer as answers[0]"),
        ({"prompt": api(("assistant", "a")), "chosen": "a", "rejected": "b"}, "prompt[0]", "at the start"),
        ({"prompt": api(("user", "q"), ("assistant", "a")), "chosen": "a", "rejected": "b"}, "prompt", "for an answer"),
        (
            {"prompt": "q", "chosen": api(("user", "q"), ("assistant", "a")), "rejected": "b"},
            "chosen and rejected",
            "one",
        ),
        (
            {"chosen": api(("user", "q"), ("assistant", "a")), "rejected": api(("user", "r"), ("assistant", "b"))},
            "what chosen and rejected share",
            "no messages",
        ),
        (
            {"chosen": api(("user", "q"), ("assistant", "a")), "rejected": api(("user", "q"), ("assistant", "a"))},
            "rejected",
            "the same answer",
        ),
        (
            {
                "prompt": "other",
                "chosen": api(("user", "q"), ("assistant", "a")),
                "rejected": api(("user", "q"), ("assistant", "b")),
            },
            "prompt",
            "another request",
        ),
    ],
)
def test_what_is_no_preference_is_refused(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse("preference", values)
    assert caught.value.where == f"a.jsonl:3  {field}"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"messages": api(("user", "q"), ("assistant", "good")), "label": False},
        {"conversations": shared(("human", "q"), ("gpt", "good")), "label": False},
        {"prompt": "q", "completion": "good", "label": "False"},
        {"prompt": api(("user", "q")), "completion": api(("assistant", "good")), "label": False},
        {"instruction": "q", "output": "good", "label": False},
        {"prompt": "q", "completion": "good", "label": 0},
        {"prompt": "q", "completion": "good", "label": "0"},
        {"instruction": "q", "output": "good", "label": " 0.0"},
    ],
)
def test_feedback_is_one_thing_in_all_spellings(values: dict[str, Any]) -> None:
    assert parse("feedback", values) == Feedback((*ASKED, *GOOD), False, "a.jsonl:3")


@pytest.mark.parametrize("label", [True, 1, "1", "1.0", "True"])
def test_a_good_verdict_is_true_or_one(label: object) -> None:
    assert parse("feedback", {"prompt": "q", "completion": "a", "label": label}).good


@pytest.mark.parametrize("label", [None, "", 2, "2", "good", [], 0.5])
def test_nothing_else_is_a_verdict(label: object) -> None:
    with pytest.raises(BadRow, match="label"):
        parse("feedback", {"prompt": "q", "completion": "a", "label": label})


def test_a_prompt_keeps_the_other_columns() -> None:
    found = parse("prompts", {"prompt": "q", "system": "s", "solution": [1, "é"], "tools": "[]"})
    assert found == Prompt((Message("system", "s"), *ASKED), "a.jsonl:3", "", '{"solution": [1, "é"]}')
    assert parse("prompts", {"prompt": "q"}).columns == ""
    plain = {"instruction": "q", "input": "i", "answer": "42"}
    assert json.loads(parse("prompts", plain).columns) == {"answer": "42"}
    with pytest.raises(BadRow, match="JSON can hold"):
        parse("prompts", {"prompt": "q", "answer": b"42"})
    with pytest.raises(BadRow, match="for an answer to follow"):
        parse("prompts", {"prompt": api(("user", "q"), ("assistant", "a"))})
