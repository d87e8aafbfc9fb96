"""What the formats have in common: the error of a row that cannot be used, and the checks of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from luthier.component import did_you_mean
from luthier.errors import UserError, excerpt
from luthier.types import Message, Role, Row

ROLES = ("system", "user", "assistant", "tool")
PAIRED = frozenset({"chosen", "rejected"})
"""Columns of preference data, which no format for plain answers may take for its own."""


class BadRow(UserError):
    """A row that cannot be used: where it stands, which field, what was found and what was expected."""

    def __init__(
        self, row: str, field: str, found: str, expected: str = "", fix: str = "", raw: str | None = None
    ) -> None:
        super().__init__(f"{row}  {field}" if field else row, found, expected, fix)
        self.row = row
        self.field = field
        self.raw = raw
        """the text as it stands in the file, where no values could be read from it"""


def text_of(row: Row, values: Mapping[str, Any], key: str, field: str = "", *, required: bool = True) -> str:
    """The text under `key`; "" where it is not required and absent or null.

    Raises:
        BadRow: it is missing, no text, or holds characters that no tokenizer takes.
    """
    field = field or key
    value = values.get(key)
    if value is None:
        if not required:
            return ""
        raise BadRow(
            row.place,
            field,
            "null" if key in values else f"missing; the keys are {excerpt(sorted(map(str, values)))}",
            "text",
        )
    if not isinstance(value, str):
        raise BadRow(row.place, field, f"{excerpt(value)} ({_kind(value)})", "text in quotes")
    if "\0" in value:
        raise BadRow(row.place, field, f"a NUL character at {value.index(chr(0))}", "text without control bytes")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRow(
                row.place,
                field,
                f"half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character {error.start}",
                "whole characters",
            ) from None
    return value


def filled(row: Row, text: str, field: str, expected: str = "text") -> str:
    """`text` if there is anything in it.

    Raises:
        BadRow: it is empty or only white space.
    """
    if not text.strip():
        raise BadRow(row.place, field, excerpt(text), expected)
    return text


def role_of(row: Row, value: object, field: str, known: Mapping[str, Role]) -> Role:
    """The role that a name means.

    Raises:
        BadRow: the name is unknown; says the nearest known one.
    """
    if isinstance(value, str) and value in known:
        return known[value]
    near = did_you_mean(value, list(known)) if isinstance(value, str) else ""
    raise BadRow(row.place, field, excerpt(value), " | ".join(known), near)


def turns_of(
    row: Row, value: object, field: str, *, role_key: str, text_key: str, known: Mapping[str, Role], train: bool = True
) -> list[Message]:
    """A list of {role_key, text_key} maps as messages. A map may say `train: false`, or `weight: 0` as OpenAI's files
    do.

    Raises:
        BadRow: the value is no such list, or one of its parts is wrong.
    """
    if not isinstance(value, (list, tuple)):
        raise BadRow(
            row.place, field, f"{excerpt(value)} ({_kind(value)})", f"a list of {{{role_key}, {text_key}}} maps"
        )
    if not value:
        raise BadRow(row.place, field, "an empty list", "at least a user's and an assistant's message")
    messages = []
    for index, item in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(item, Mapping):
            raise BadRow(row.place, place, f"{excerpt(item)} ({_kind(item)})", f"a map with {role_key} and {text_key}")
        for key in ("tool_calls", "function_call"):
            if item.get(key):
                raise BadRow(
                    row.place, f"{place}.{key}", excerpt(item[key]), "plain text: calls of tools cannot be trained yet"
                )
        if role_key not in item:
            raise BadRow(
                row.place,
                f"{place}.{role_key}",
                f"missing; the keys are {excerpt(sorted(map(str, item)))}",
                " | ".join(known),
            )
        role = role_of(row, item[role_key], f"{place}.{role_key}", known)
        text = text_of(row, item, text_key, f"{place}.{text_key}")
        messages.append(Message(role, text, train and _trains(row, item, place)))
    return messages


def _trains(row: Row, item: Mapping[str, Any], place: str) -> bool:
    flags = {key: item[key] for key in ("train", "weight") if item.get(key) is not None}
    for key, value in flags.items():
        if value not in (0, 1):
            raise BadRow(row.place, f"{place}.{key}", excerpt(value), "true or false" if key == "train" else "0 or 1")
    return all(flags.values())


def no_tools(row: Row) -> None:
    """Refuses a row that offers tools: its template would have to show them, and an unseen tool is a wrong lesson."""
    tools = row.values.get("tools")
    if tools and tools not in ("[]", "{}"):
        raise BadRow(
            row.place, "tools", excerpt(tools), "no tools: they cannot be rendered yet", "leave these rows out"
        )


def checked(row: Row, messages: list[Message], field: str) -> tuple[Message, ...]:
    """The messages, if their order is one that a chat template can show; empty system messages are left out.

    The order: at most one system message, first; then a user's message and an assistant's in turn (tool results follow
    an assistant's message, and an assistant's message follows them); the last is an assistant's. At least one is
    trained.

    Raises:
        BadRow: names the first message that breaks the order, or an empty one.
    """
    after = {
        "": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
    previous, out = "", []
    for index, message in enumerate(messages):
        place = f"{field}[{index}]" if field else message.role
        if message.role == "system" and not message.content.strip() and not previous:
            continue
        if message.role not in after[previous]:
            raise BadRow(
                row.place,
                place,
                f"a message of role {message.role}"
                + (f" after one of role {previous}" if previous else " at the start"),
                "one of role " + " or ".join(after[previous]),
            )
        if not message.content.strip():
            reason = "an answer: an empty one trains only the stop token" if message.role == "assistant" else "text"
            raise BadRow(row.place, place, f"{excerpt(message.content)} (empty)", reason)
        out.append(message)
        previous = message.role
    if previous != "assistant":
        raise BadRow(
            row.place,
            field,
            f"the last message has role {previous or 'none'}" if out else "no messages",
            "an assistant's message at the end",
        )
    if not any(message.train for message in out if message.role == "assistant"):
        raise BadRow(row.place, field, "no assistant's message is trained", "at least one without train: false")
    return tuple(out)


def is_turns(value: object, role_key: str, text_key: str) -> bool:
    """Whether a value looks like a list of {role_key, text_key} maps."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and isinstance(value[0], Mapping)
        and {role_key, text_key} <= set(value[0])
    )


def same_names() -> dict[str, Role]:
    return {role: cast(Role, role) for role in ROLES}


def _kind(value: object) -> str:
    names = {
        "dict": "a map",
        "list": "a list",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
    }
    return names.get(type(value).__name__, type(value).__name__)
