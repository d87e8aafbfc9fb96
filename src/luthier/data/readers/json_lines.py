"""JSONL: a JSON map a line. Lines end at a line feed only: other line separators may stand inside JSON texts. Blank lines
are no records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from luthier.data.readers._bytes import File, not_utf8, records_of_lines
from luthier.data.readers._json_row import row_of
from luthier.errors import BadRow
from luthier.system.strict_json import StrictJSON, reason
from luthier.types import Row


def line_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of lines. Raises UserError where one is in another encoding."""
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
