"""The table of bad data files: how each is written, and what must be said of it.

A case that is harmless by design has exit code 0 and the number of rows that must be used. Where a case is smaller than its
name, or needs a stand-in, `about` says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONG = "SECRET" * 30
"""No message may show more than 80 characters of it."""

GOOD: list[dict[str, Any]] = [{"instruction": f"Say {number}", "output": f"number {number}"} for number in range(12)]
MEND = "on_bad_row=drop"
ALL_BAD = "mend the rows"

Write = Callable[[Path], list[str] | None]
"""Writes the file into the working folder; gives overrides, `data=...` among them where the file is not train.jsonl."""


@dataclass(frozen=True)
class Case:
    write: Write
    words: tuple[str, ...] = ()
    """each stands in the message: place, field, remedy"""
    code: int = 2
    used: int | None = None
    """rows that are used, where the case is harmless"""
    about: str = ""


def line_of(row: object) -> str:
    return row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)


def text(rows: list[Any], name: str = "train.jsonl", encoding: str = "utf-8", end: str = "\n") -> Write:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes("".join(line_of(row) + end for row in rows).encode(encoding))
        return [f"data={name}"]

    return write


def raw(data: bytes, name: str = "train.jsonl") -> Write:
    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(data)
        return [f"data={name}"]

    return write


def at(number: int, row: object) -> Write:
    """Good rows, with another one at a line."""
    return text([*GOOD[: number - 1], row, *GOOD[number:]])


def alpaca(**changed: Any) -> dict[str, Any]:
    return {"instruction": f"Say {LONG}", "input": "", "output": f"number {LONG}", **changed}


def chat(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


FINE = chat(("user", "a"), ("assistant", "b"))
U, A = ("user", f"asks {LONG}"), ("assistant", f"says {LONG}")


def in_chat(*pairs: tuple[Any, Any], **more: Any) -> Write:
    return text([FINE, FINE, chat(*pairs, **more), FINE])


def refused(write: Write, *words: str, about: str = "") -> Case:
    return Case(write, words, about=about)


def fine(write: Write, used: int, *words: str, about: str = "") -> Case:
    return Case(write, words, 0, used, about)


LINES = "".join(line_of(row) + "\n" for row in GOOD)

ENCODINGS = {
    "UTF-8 with a byte order mark": fine(raw(b"\xef\xbb\xbf" + LINES.encode()), 12),
    "UTF-16LE": refused(text(GOOD, encoding="utf-16-le"), "train.jsonl", "UTF-16LE", "iconv -f UTF-16LE"),
    "UTF-16BE": refused(text(GOOD, encoding="utf-16-be"), "train.jsonl", "UTF-16BE", "iconv -f UTF-16BE"),
    "latin-1": refused(
        text([GOOD[0], alpaca(output="né")], encoding="latin-1"), "train.jsonl:2", "not UTF-8", "iconv -f ITS_ENCODING"
    ),
    "GBK": refused(text([alpaca(output="你好")], encoding="gbk"), "train.jsonl:1", "not UTF-8", "iconv"),
    "mixed": refused(
        raw(LINES.encode() + '{"instruction": "é", "output": "é"}\n'.encode("latin-1")),
        "train.jsonl:13",
        "UTF-8",
        "iconv",
    ),
    "lone surrogate": refused(
        at(3, '{"instruction": "a", "output": "' + LONG + '\\ud800"}'), "train.jsonl:3", "output", "surrogate", MEND
    ),
    "NUL": refused(at(3, alpaca(output=LONG + "\0")), "train.jsonl:3", "output", "NUL", MEND),
    "overlong": refused(raw(LINES.encode() + b'{"instruction": "\xc0\xaf"}'), "train.jsonl:13", "0xc0", "iconv"),
    "U+2028 in a line": fine(at(3, {"instruction": "a\u2028b", "output": "c\u2029\x85d"}), 12),
}

FORMAT = {
    "broken line first": refused(at(1, '{"instruction": "' + LONG), "train.jsonl:1", "broken JSON", MEND),
    "broken line in the middle": refused(at(6, "{" + LONG), "train.jsonl:6", "broken JSON", MEND),
    "broken line last": refused(at(12, '{"a": 1'), "train.jsonl:12", "broken JSON", MEND),
    "truncated tail": refused(raw(LINES.encode()[:-15]), "train.jsonl:12", "broken JSON", MEND),
    "trailing comma": refused(at(4, '{"instruction": "a", "output": "b",}'), "train.jsonl:4", "broken JSON", MEND),
    "CRLF": fine(text(GOOD, end="\r\n"), 12),
    "CR": refused(text(GOOD, end="\r"), "train.jsonl:1", "carriage return", "tr '\\r' '\\n'"),
    "blank lines": fine(text(["", *GOOD, " \t", ""]), 12),
    "comment": refused(at(2, "// a comment"), "train.jsonl:2", "broken JSON", MEND),
    "concatenated objects": refused(at(5, line_of(GOOD[0]) * 2), "train.jsonl:5", "Extra data", MEND),
    "JSON array named .jsonl": fine(raw(json.dumps(GOOD, indent=1).encode()), 12),
    "JSONL named .json": fine(text(GOOD, name="train.json"), 12),
}


def a_huge_line(folder: Path) -> None:
    """A line far beyond the bound, as a file with a hole."""
    with (folder / "train.jsonl").open("wb") as file:
        file.write(LINES.encode() + b'{"instruction": "a", "output": "')
        file.seek(256 << 20)
        file.write(b'"}\n' + line_of(GOOD[0]).encode() + b"\n")


VALUES = {
    "NaN": refused(at(2, '{"instruction": "a", "output": "b", "score": NaN}'), "train.jsonl:2", "NaN", MEND),
    "Infinity": refused(
        at(2, '{"instruction": "a", "output": "b", "x": [-Infinity]}'), "train.jsonl:2", "Infinity", MEND
    ),
    "duplicate keys": refused(
        at(2, '{"instruction": "a", "output": "b", "output": "c"}'),
        "train.jsonl:2",
        "'output' stands in it twice",
        MEND,
    ),
    "depth of 100,000": refused(at(2, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "train.jsonl:2", "nested", MEND),
    "an int of 5,000 digits": refused(
        at(2, '{"instruction": ' + "9" * 5000 + "}"), "train.jsonl:2", "broken JSON", MEND
    ),
    "a text of 1 MB": refused(at(2, alpaca(output="word " * 200_000)), "train.jsonl:2", "tokens", "on_long_row=drop"),
    "a line of 1 GB": refused(
        a_huge_line,
        "train.jsonl:13",
        "16,777,216 bytes",
        MEND,
        about="a quarter of that, as a file with a hole; the bound is the real one",
    ),
    "a scalar at the top": refused(at(2, '"' + LONG + '"'), "train.jsonl:2", "a map in braces", MEND),
}

KINDS: dict[str, Any] = {"null": None, "int": 5, "list": [LONG], "dict": {LONG: 1}, "bool": True}
TYPES = {
    f"{kind} as {field}": refused(at(4, alpaca(**{field: value})), "train.jsonl:4", field, "text", MEND)
    for field in ("instruction", "output")
    for kind, value in KINDS.items()
}
TYPES |= {
    "bool as input": refused(at(4, alpaca(input=True)), "train.jsonl:4", "input", "text in quotes", MEND),
    "int as system": refused(at(4, alpaca(system=5)), "train.jsonl:4", "system", "text in quotes", MEND),
    "messages as a text": refused(text([FINE, {"messages": LONG}]), "train.jsonl:2", "messages", "a list of", MEND),
    "content as a list": refused(
        in_chat(("user", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": LONG}]), A),
        "train.jsonl:3",
        "messages[0].content[1].type",
        "parts of type text",
        MEND,
        about="a list of parts of text alone is read",
    ),
}

EMPTINESS = {
    "0 bytes": refused(raw(b""), "train.jsonl", "empty", "data.train=FILE"),
    "0 rows": refused(raw(b"[]", "train.json"), "train.json", "no rows", "put rows in it"),
    "empty output": refused(at(9, alpaca(output="")), "train.jsonl:9", "output", "an answer", MEND),
    "white space": refused(at(9, alpaca(output=" \n\t")), "train.jsonl:9", "output", "an answer", MEND),
    "empty messages": refused(text([FINE, {"messages": []}]), "train.jsonl:2", "messages", "an empty list", MEND),
    "only a system message": refused(in_chat(("system", LONG)), "train.jsonl:3", "messages", "role system", MEND),
    "empty prompt": refused(text([{"prompt": "", "completion": LONG}]), "train.jsonl:1", "prompt", "a request", ALL_BAD),
    "all rows empty": refused(
        text([{"instruction": "", "output": ""}] * 30), "30 of 30 rows", "train.jsonl:1", "output", "and 10 more", ALL_BAD
    ),
}

SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
ROLES = {
    "unknown": refused(in_chat(U, ("asistant", LONG)), "train.jsonl:3", "messages[1].role", '"assistant"', MEND),
    "missing": refused(
        text([FINE, {"messages": [{"role": "user", "content": "a"}, {"content": LONG}]}]),
        "train.jsonl:2",
        "messages[1].role",
        "missing",
        MEND,
    ),
    "wrong case": refused(in_chat(("User", "a"), A), "train.jsonl:3", "messages[0].role", 'did you mean "user"', MEND),
    "human and gpt": refused(
        in_chat(("human", "a"), ("gpt", LONG)), "train.jsonl:3", "messages[0].role", "user | assistant", MEND
    ),
    "two users": refused(in_chat(U, U, A), "train.jsonl:3", "messages[1]", "after one of role user", MEND),
    "two assistants": refused(in_chat(U, A, A), "train.jsonl:3", "messages[2]", "after one of role assistant", MEND),
    "starts with an assistant": refused(in_chat(A, U, A), "train.jsonl:3", "messages[0]", "at the start", MEND),
    "ends with a user": refused(in_chat(U, A, U), "train.jsonl:3", "messages", "the last message has role user", MEND),
    "a system message in the middle": refused(
        in_chat(U, ("system", LONG), A), "train.jsonl:3", "messages[1]", "role system after", MEND
    ),
    "a result without a call": refused(
        in_chat(U, ("tool", LONG), A), "train.jsonl:3", "messages[1]", "role tool", MEND
    ),
    "odd count": refused(
        text([SHARED, {"conversations": [*SHARED["conversations"], {"from": "human", "value": LONG}]}]),
        "train.jsonl:2",
        "conversations",
        "the last message has role user",
        MEND,
    ),
    "two system messages": refused(
        in_chat(("system", "a"), ("system", "b"), U, A), "train.jsonl:3", "messages[1]", "role system after", MEND
    ),
}

PAIR = {"prompt": "a", "chosen": LONG, "rejected": "b"}
CALL = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": f'["{LONG}"]'}}]
SCHEMA = {
    "alpaca and sharegpt mixed": refused(at(7, SHARED), "train.jsonl:7", "instruction", "missing", MEND),
    "a missing column": refused(at(7, {"instruction": LONG}), "train.jsonl:7", "output", "missing", MEND),
    "an extra column": fine(at(7, {"instruction": "a", "output": "b", "note": LONG}), 12),
    "the type changes at row 10,001": refused(
        text([{"text": "a"}] * 10_000 + [{"text": 3}]), "train.jsonl:10001", "text", "1 of 10,001 rows", MEND
    ),
    "renamed columns": refused(
        text([{"question": LONG, "answer": LONG}]),
        "train.jsonl:1",
        "no format fits",
        "format: {kind: alpaca, instruction: question, input: null, output: answer}",
    ),
    "nested wrongly": refused(at(7, alpaca(output={"text": LONG})), "train.jsonl:7", "output", "a map", MEND),
    "chosen is rejected": refused(
        text([PAIR, {**PAIR, "rejected": LONG}]), "train.jsonl:2", "rejected", "the same answer as chosen", ALL_BAD
    ),
    "rejected is null": refused(text([PAIR, {**PAIR, "rejected": None}]), "train.jsonl:2", "rejected", "null", ALL_BAD),
    "an image": refused(
        at(7, alpaca(images=["missing.png"])), "train.jsonl:7", "images", "text alone", "leave the row out"
    ),
    "arguments of a call as a text": refused(
        text([FINE, {"messages": [*FINE["messages"][:1], {"role": "assistant", "tool_calls": CALL}]}]),
        "train.jsonl:2",
        "messages[1].tool_calls[0].arguments",
        "a map of the arguments",
        MEND,
        about="JSON text of a map is read as the map is (tests/formats/test_tools.py)",
    ),
}


def limited(rows: list[Any], limit: int) -> Write:
    def write(folder: Path) -> list[str]:
        text(rows)(folder)
        return ["data=train.jsonl", f"max_length={limit}"]

    return write


LENGTH = {
    "prompt longer than the limit": refused(
        limited([*GOOD[:2], alpaca(instruction="word " * 90, output="x")], 60),
        "train.jsonl:3",
        "at most 60",
        "on_long_row",
    ),
    "answer longer than the limit": refused(
        limited([*GOOD[:2], {"instruction": "x", "output": "word " * 90}], 60),
        "train.jsonl:3",
        "at most 60",
        "on_long_row",
    ),
    "a row of a million tokens": refused(
        at(3, {"instruction": "x", "output": "word " * 1_000_000}), "train.jsonl:3", "at most 256", "on_long_row=drop"
    ),
    "all too long": refused(limited(GOOD, 5), "12 of 12 rows", "train.jsonl:1", "at most 5", "on_long_row=drop"),
    "exactly the limit": fine(limited([{"text": "a" * 9}], 0), 1, about="the limit is set to the row's own length"),
    "one more than the limit": refused(
        limited([{"text": "a" * 9}], -1), "train.jsonl:1", "at most", "on_long_row=drop"
    ),
    "one token": fine(text([{"instruction": "a", "output": "b"}]), 1, about="an answer of one token"),
    "no trained token": refused(
        text([FINE, {"messages": [FINE["messages"][0], {**FINE["messages"][1], "train": False}]}]),
        "train.jsonl:2",
        "messages",
        "no assistant's message is trained",
        MEND,
    ),
}


def held_out(rows: list[Any], held: list[Any]) -> Write:
    def write(folder: Path) -> list[str]:
        text(rows)(folder)
        text(held, name="held.jsonl")(folder)
        return ["data={train: train.jsonl, eval: held.jsonl}"]

    return write


def twice(folder: Path) -> list[str]:
    text(GOOD)(folder)
    return ["data={train: train.jsonl, eval: train.jsonl}"]


COUNTING = " ".join(f"number {number}" for number in range(12))
DUPLICATES = {
    "exact duplicates": fine(text([*GOOD, *GOOD]), 24, "exact: 12"),
    "one request, other answers": fine(text([*GOOD, {**GOOD[0], "output": "zero"}]), 13, "conflicts: 1"),
    "near duplicates": fine(
        text([{**GOOD[0], "output": COUNTING}, *GOOD[1:], {**GOOD[0], "output": f"{COUNTING} More."}]), 13, "near: 1"
    ),
    "held-out rows that are trained": fine(held_out(GOOD, GOOD[:3]), 12, "held_out_prompts_also_trained: 3"),
    "held-out requests with other answers": fine(
        held_out(GOOD, [{**GOOD[0], "output": "zero"}]), 12, "held_out_prompts_also_trained: 1"
    ),
    "one file for both": fine(
        twice,
        12,
        "held_out_prompts_also_trained: 12",
    ),
}


def loop(folder: Path) -> list[str]:
    (folder / "train.jsonl").symlink_to("train.jsonl")
    return ["data=train.jsonl"]


def fifo(folder: Path) -> list[str]:
    os.mkfifo(folder / "train.jsonl")
    return ["data=train.jsonl"]


def an_empty_folder(folder: Path) -> list[str]:
    (folder / "rows").mkdir()
    return ["data=rows"]


def named(given: str, name: str) -> Write:
    def write(folder: Path) -> list[str]:
        text(GOOD, name=name)(folder)
        return [f"data={given}"]

    return write


PATHS = {
    "missing": refused(lambda folder: ["data=nowhere.jsonl"], "nowhere.jsonl", "no such file", "PATH/nowhere.jsonl"),
    "a folder": refused(
        an_empty_folder, "rows", "no data files", "FILE", about="a folder of files of one kind is read"
    ),
    "no permission": Case(
        text(GOOD),
        ("train.jsonl", "Permission denied", "ls -l train.jsonl"),
        3,
        about="a stand-in, because root may read all",
    ),
    "a link in a circle": refused(loop, "train.jsonl", "in a circle", "ls -l train.jsonl"),
    "a pipe": refused(fifo, "train.jsonl", "no ordinary file", "copy what it gives"),
    "another case": refused(named("Train.jsonl", "train.jsonl"), "Train.jsonl", "no such file", '"train.jsonl"'),
    "a pattern of nothing": refused(lambda folder: ["data='*.jsonl'"], "*.jsonl", "no file matches", "ls *.jsonl"),
    "a name in Chinese": fine(named("数据 é.jsonl", "数据 é.jsonl"), 12),
    "it disappears": refused(text(GOOD), "train.jsonl", "disappeared while it was read", "put it back"),
    "it changes": refused(text(GOOD), "train.jsonl", "changed while it was read", "start again"),
}
