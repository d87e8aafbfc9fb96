"""JSONL: a JSON map a line. Lines end at a line feed only: other line separators may stand inside JSON texts. Blank lines
are no records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from luthier.data.readers import json_array
from luthier.data.readers._bytes import File, not_utf8, opened, records_of_lines, skip_mark_of_order
from luthier.errors import excerpt
from luthier.formats._shared import BadRow
from luthier.strict_json import StrictJSON, reason
from luthier.types import Row


def rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records; a file that begins with a bracket is read as the array that it is.

    Raises:
        UserError: another encoding, with the line; or nothing in the file.
    """
    if begins_with(file, b"["):
        yield from json_array.array_rows(file, start)
        return
    yield from line_rows(file, start)


def line_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The same for lines."""
    parser = StrictJSON()
    for number, line in records_of_lines(file, start):
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            text = line.decode().strip(" \t\r\n")
        except UnicodeDecodeError as error:
            raise not_utf8(file, number, error) from None
        try:
            value, end = parser.value_at(text)
            if end != len(text):
                raise json.JSONDecodeError("Extra data", text, end)
        except ValueError as error:
            yield broken(f"{file.name}:{number}", text, error)
            continue
        yield row_of(value, file.name, number, None, parser, text)


def broken(place: str, text: str, error: ValueError) -> BadRow:
    """The error of a line that is no JSON."""
    fix = ""
    if "\r" in text:
        fix = "its lines end with a carriage return alone: tr '\\r' '\\n' < FILE > unix.jsonl"
    return BadRow(place, "", f"broken JSON: {reason(error)}", "one JSON map on one line", fix, raw=text)


def row_of(value: Any, name: str, number: int, line: int | None, parser: StrictJSON, raw: str) -> Row | BadRow:
    """A parsed value as a row, if it is a map without faults."""
    if parser.faults or not isinstance(value, dict):
        place = Row({}, name, number, line).place
        if parser.faults:
            found, expected = parser.faults[0]
            return BadRow(place, "", found, expected, raw=raw)
        return BadRow(place, "", excerpt(value), 'a map in braces: {"key": "value"}', raw=raw)
    return Row(value, name, number, line)


def count(file: File) -> int:
    """How many records a file has, without parsing them where it has lines."""
    if begins_with(file, b"["):
        return sum(1 for _ in rows(file))
    return sum(1 for _ in records_of_lines(file))


def begins_with(file: File, char: bytes) -> bool:
    """Whether a file's first character that is no white space is this one."""
    with opened(file) as stream:
        skip_mark_of_order(file, stream)
        while (block := stream.peek(1)) and block.isspace():
            stream.read(len(block))
        return block.lstrip()[:1] == char
