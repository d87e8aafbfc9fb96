"""Columns with names of their own: what they may mean, by what columns of requests and answers are often called."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.config import data_entry
from luthier.config.documents import to_line
from luthier.errors import UserError

REQUESTS = ("question", "query", "instruction", "input", "prompt", "request", "problem", "user", "human")
ANSWERS = ("answer", "response", "output", "completion", "target", "reply", "assistant", "bot", "gpt")
BESIDE = ("context", "passage", "document", "input", "thinking", "reasoning")
"""Where one of them stands beside a request and an answer, leaving it out may be wrong."""
LONGEST = 80
"""Characters of a name that is worth proposing."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A format for the columns of a file: its name, or with the columns that it reads."""

    format: str | dict[str, str | None]
    evident: bool
    """whether nothing else is likely"""
    works: bool = True
    """False where there are no columns that it could name"""

    def entry(self, path: object, others: Mapping[str, Any] | None = None) -> str:
        """A file's entry in a configuration, in one line."""
        return to_line({"path": str(path), **(others or {}), "format": self.format})

    def named(self, text: str) -> str:
        """The same of a file as a command names it, a path or a map of more than one."""
        given = data_entry(text)
        others = {key: value for key, value in given.items() if key != "path"} if isinstance(given, dict) else {}
        return self.entry(given["path"] if others else text, others)

    def word(self, key: str, path: object) -> str:
        """The same as an override that a shell takes."""
        return shlex.quote(f"{key}={self.entry(path)}")


class NoFormat(UserError):
    """No format fits the columns of a file, or none that can be learned from."""

    def __init__(self, where: str, found: str, expected: str, fix: str, proposed: Proposed) -> None:
        super().__init__(where, found, expected, fix)
        self.proposed = proposed


def has_an_answer(row: Mapping[str, Any]) -> bool:
    """Whether a column of the row is called as answers are."""
    return any(_plain(column) in ANSWERS for column in row)


def proposed(first: Mapping[str, Any]) -> Proposed:
    """What the columns of a row may mean."""
    short = ((str(column), value) for column, value in first.items() if len(str(column)) <= LONGEST)
    turns = [found for column, value in short if (found := _of_turns(column, value))]
    if turns:
        return Proposed(turns[0], evident=len(turns) == 1)
    texts = [str(column) for column, value in first.items() if isinstance(value, str) and len(str(column)) <= LONGEST]
    requests, answers = _called(texts, REQUESTS), _called(texts, ANSWERS)
    beside = [one for one in _called(texts, BESIDE) if one not in requests[:1]]
    evident = len(requests) == len(answers) == 1 and not beside
    if not requests and not answers and len(texts) == 1:
        return Proposed({"kind": "text", "text": texts[0]}, evident=False)
    named = {*requests[:1], *answers[:1]}
    left = [column for column in texts if column not in named]
    works = len(texts) > 1
    request = requests[0] if requests else left.pop(0) if left else "REQUEST"
    answer = answers[0] if answers else left[-1] if left else "ANSWER"
    return Proposed({"kind": "alpaca", "instruction": request, "input": None, "output": answer}, evident, works)


def _called(columns: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns that are called so, the likeliest first."""
    found = [column for column in columns if _plain(column) in names]
    return sorted(found, key=lambda column: names.index(_plain(column)))


def _plain(column: object) -> str:
    return str(column).strip().lower()


def _of_turns(column: str, value: Any) -> dict[str, str | None]:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        keys = value[0].keys()
        if {"role", "content"} <= keys:
            return {"kind": "messages", "messages": column}
        if {"from", "value"} <= keys:
            return {"kind": "sharegpt", "conversations": column}
    return {}
