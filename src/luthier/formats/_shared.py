"""What the formats have in common: the error of a row that cannot be used, and the checks of its texts and its order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.config.bounds import Name
from luthier.errors import BadRow, excerpt
from luthier.formats import MEDIA
from luthier.types import Message, Row

Column = Name
"""The name of a column; the same as the key where a file uses the usual name."""

AN_ANSWER = "an answer: an empty one trains only the stop token"
KINDS = {"dict": "a map", "list": "a list", "tuple": "a list", "int": "a number", "float": "a number"}
KINDS |= {"bool": "true or false", "str": "text", "NoneType": "null", "bytes": "binary data"}


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    return KINDS.get(type(value).__name__, type(value).__name__)


def found(value: object) -> str:
    """What stands there, and what kind of value that is."""
    return "null" if value is None else f"{excerpt(value)} ({kind_of(value)})"


def missing(row: Row, values: Mapping[str, Any], key: str) -> str:
    """What is said of a key without a value: null, or not there (then which keys are)."""
    return "null" if key in values else f"missing; the keys are {excerpt(sorted(map(str, values)))}"


def text_of(
    row: Row, values: Mapping[str, Any], key: str | None, field: str = "", *, required: bool = True, fix: str = ""
) -> str:
    """The text under `key`; "" where there is no key, or it is not required and absent or null.

    Raises:
        BadRow: it is missing, no text, or holds characters that no tokenizer takes.
    """
    if key is None:
        return ""
    value = values.get(key)
    if value is None:
        if not required:
            return ""
        raise BadRow(row.place, field or key, missing(row, values, key), "text", fix)
    if not isinstance(value, str):
        raise BadRow(row.place, field or key, found(value), "text in quotes")
    return clean(row, value, field or key)


def clean(row: Row, text: str, field: str) -> str:
    """`text`, if it holds nothing but whole characters.

    Raises:
        BadRow: a NUL character, or half of a surrogate pair.
    """
    if "\0" in text:
        raise BadRow(row.place, field, f"a NUL character at {text.index(chr(0))}", "text without control bytes")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair (\\u{ord(text[error.start]):04x}) at character {error.start}"
            raise BadRow(row.place, field, half, "whole characters") from None
    return text


def filled(row: Row, text: str, field: str, expected: str = "text") -> str:
    """`text` if there is anything in it.

    Raises:
        BadRow: it is empty or only white space.
    """
    if not text.strip():
        raise BadRow(row.place, field, f"{excerpt(text)} (empty)", expected)
    return text


def only_text(row: Row) -> None:
    """Refuses a row about a picture, a film or a sound. Raises BadRow."""
    if MEDIA.isdisjoint(row.values):
        return
    for column in sorted(MEDIA & row.values.keys()):
        if row.values[column]:
            raise BadRow(
                row.place,
                column,
                found(row.values[column]),
                "no such column: text alone is learned from",
                f"leave the row out, or the column {column} if the texts do not need it",
            )


CALL_IN_TEXT = re.compile(r"[<\[|]\s*(tool|function)|\"name\"\s*:|\w\(|^Action\s*:", re.IGNORECASE | re.MULTILINE)
"""A call as many write it into an answer's text: a tag, a JSON map with a name, f(...), `Action: ...`."""


VERDICTS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Verdicts on an answer as text, which is all that a CSV file has."""


def verdict_of(value: object) -> bool | None:
    """Whether a value calls an answer good (true, 1) or bad (false, 0); None where it looks like no verdict."""
    if isinstance(value, str):
        return VERDICTS.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None


AFTER = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""The roles that may follow each role; '' is the start."""


def ordered(row: Row, messages: Sequence[Message], places: Sequence[str], previous: str = "") -> list[Message]:
    """The messages, if their order is one that a chat template can show; an empty system message at the start is left
    out.

    The order: at most one system message, first; then a user's message and an assistant's in turn. Results of tools, one
    or several, follow an assistant's message, and an assistant's message follows them. An assistant's message is empty
    only where it calls a tool.

    Args:
        places: the field of each message, for errors.
        previous: the role before the first message.

    Raises:
        BadRow: names the first message that breaks the order, or an empty one.
    """
    out: list[Message] = []
    calls: set[str] = set()
    for message, place in zip(messages, places, strict=True):
        if message.role == "system" and not message.content.strip() and not previous:
            continue
        if message.role not in AFTER[previous]:
            where = f"after one of role {previous}" if previous else "at the start"
            expected = "one of role " + " or ".join(AFTER[previous])
            raise BadRow(row.place, place, f"a message of role {message.role} {where}", expected)
        if not message.content.strip() and not message.tool_calls and message.role != "tool":
            expected = AN_ANSWER if message.role == "assistant" else "text"
            raise BadRow(row.place, place, f"{excerpt(message.content)} (empty)", expected)
        if message.role == "tool" and out and not _calls(out):
            expected = "a call in the assistant's message before it"
            raise BadRow(row.place, place, "a tool's result, though no tool was called", expected)
        if message.role == "assistant":
            calls = {call.id for call in message.tool_calls if call.id}
        elif message.tool_call_id and calls and message.tool_call_id not in calls:
            expected = "the id of a call before it: " + excerpt(sorted(calls))
            raise BadRow(row.place, f"{place}.tool_call_id", excerpt(message.tool_call_id), expected)
        out.append(message)
        previous = message.role
    return out


def _calls(messages: Sequence[Message]) -> bool:
    """Whether the last message that is no tool's result calls a tool, in its text perhaps."""
    last = next(message for message in reversed(messages) if message.role != "tool")
    return bool(last.tool_calls) or CALL_IN_TEXT.search(last.content) is not None


def conversation(row: Row, messages: Sequence[Message], places: Sequence[str], field: str) -> tuple[Message, ...]:
    """The messages of a whole conversation: in order, with an assistant's at the end, and something to train.

    Raises:
        BadRow: as `ordered`; or it ends otherwise, or no assistant's message is trained.
    """
    out = ordered(row, messages, places)
    if not out or out[-1].role != "assistant":
        wrong = f"the last message has role {out[-1].role}" if out else "no messages"
        raise BadRow(row.place, field, wrong, "an assistant's message at the end")
    if not any(message.train for message in out if message.role == "assistant"):
        raise BadRow(row.place, field, "no assistant's message is trained", "at least one without train: false")
    return tuple(out)


def numbered(field: str, messages: Sequence[Message]) -> list[str]:
    """The places of messages that stand in one list."""
    return [f"{field}[{index}]" for index in range(len(messages))]


def with_system(
    row: Row, column: str | None, messages: Sequence[Message], places: Sequence[str]
) -> tuple[list[Message], list[str]]:
    """The messages and their places, after the system text of a column. A system message of the messages' own goes before
    the column.

    Raises:
        BadRow: the column holds no text.
    """
    system = text_of(row, row.values, column, required=False)
    first = messages[0] if messages else None
    if not system.strip() or (first is not None and first.role == "system" and first.content.strip()):
        return list(messages), list(places)
    empty = int(first is not None and first.role == "system")
    return [Message("system", system), *messages[empty:]], [str(column), *places[empty:]]
