"""JSON: one array of maps, or a single map over as many lines as it likes. It is parsed piece by piece.

`ijson` streams too, three times as fast, which is little beside the encoding of the rows. But it says neither on which line a
record begins nor on which one the array is broken, takes the last of two equal keys without a word, and has no text of a record
to show. `datasets` reads an array as a whole, and says no line either.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from luthier.data.readers._bytes import (
    BLOCK_BYTES,
    File,
    empty,
    not_utf8,
    opened,
    skip_mark_of_order,
    skip_white,
    unreadable,
)
from luthier.data.readers._json_row import row_of
from luthier.errors import BadRow, UserError
from luthier.system.strict_json import StrictJSON, reason
from luthier.types import Row

NOT_WHITE = re.compile(r"[^ \t\r\n]")
LONGEST_LITERAL = 16
"""No word, number sign or escape of JSON is longer, so an error this near to the end of what was read may be its end."""


class _Window:
    """The part of a file that is being parsed."""

    def __init__(self, file: File, stream: io.BufferedReader[Any]) -> None:
        self.file = file
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.parser = StrictJSON()
        self.text = ""
        self.position = 0
        self.line = 1
        """of the position, from 1"""
        self.ended = False
        skip_mark_of_order(file, stream)

    def more(self) -> None:
        """Reads on; at least as much as is held, so that a long value is not parsed too often."""
        held = len(self.text) - self.position
        try:
            block = self.stream.read(max(BLOCK_BYTES, held))
        except OSError as error:
            raise unreadable(self.file.name, error) from None
        self.ended = not block
        try:
            decoded = self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.position) + error.object.count(b"\n", 0, error.start)
            before = error.object.rfind(b"\n", 0, error.start) + 1
            at = UnicodeDecodeError(
                "utf-8", error.object[before:], error.start - before, error.end - before, error.reason
            )
            raise not_utf8(self.file, line, at) from None
        self.text = self.text[self.position :] + decoded
        self.position = 0

    def move_to(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def next_char(self) -> str:
        """The next character that is no white space, not taken; "" at the end of the file."""
        while True:
            position = self.position
            found = NOT_WHITE.search(self.text, position)
            position = found.start() if found else len(self.text)
            self.move_to(position)
            if position < len(self.text) or self.ended:
                return self.text[position : position + 1]
            self.more()

    def take(self) -> None:
        self.move_to(self.position + 1)

    def value(self) -> tuple[Any, str]:
        """The value that begins here, and its text. Raises UserError with the line."""
        while True:
            try:
                value, end = self.parser.value_at(self.text, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise self.broken(error.msg, error.pos) from None
            except ValueError as error:
                raise self.broken(reason(error), self.position) from None
            else:
                whole = end < len(self.text) or self.ended  # a number at the very end may go on
                if whole and end - self.position <= self.file.limits.row_bytes:
                    raw = self.text[self.position : end]
                    self.move_to(end)
                    return value, raw
            if (held := len(self.text) - self.position) > self.file.limits.row_bytes:
                most = f"{self.file.limits.row_bytes:,} bytes"
                raise UserError(
                    f"{self.file.name}:{self.line}",
                    f"a record of more than {most}",
                    f"at most {most} a record",
                    self.file.limits.fix(f"data.max_row_bytes={4 * held} reads it, if it is one; else ")
                    + "close its quotes and brackets",
                )
            self.more()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_LITERAL

    def broken(self, why: str, position: int | None = None) -> UserError:
        line = self.line + (0 if position is None else self.text.count("\n", self.position, position))
        fix = f"python3 -m json.tool {self.file.name} > /dev/null shows the place; or write a map a line, as .jsonl"
        return UserError(f"{self.file.name}:{line}", f"broken JSON: {why}", "a JSON array of maps: [{...}, {...}]", fix)


def array_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of an array.

    Raises:
        UserError: it is broken, with the line.
    """
    with opened(file) as stream:
        window = _Window(file, stream)
        window.next_char()
        window.take()  # the bracket
        number = 0
        char = window.next_char()
        while char != "]":
            if not char:
                raise window.broken("the file ends inside the array")
            number += 1
            line = window.line
            value, raw = window.value()
            if number > start:
                yield row_of(value, file.name, number, line, window.parser, raw)
            char = window.next_char()
            if char == ",":
                window.take()
                if (char := window.next_char()) == "]":
                    raise window.broken("a comma before ]")
            elif char and char != "]":
                raise window.broken("a comma or ] is missing")
        window.take()
        if window.next_char():
            raise window.broken("more text after the array")


def is_one_map(file: File) -> bool:
    """Whether a file is one map over several lines, whole or broken, rather than a map a line."""
    with opened(file) as stream:
        skip_mark_of_order(file, stream)
        skip_white(stream)
        line = stream.readline(BLOCK_BYTES)
    if not line:
        raise empty(file)
    if line.strip() == b"{":
        return True
    with opened(file) as stream:
        window = _Window(file, stream)
        window.next_char()
        first = window.line
        try:
            window.value()
        except UserError:
            return False
        return window.line > first


def map_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The one record of a file that is a map. Raises UserError where more follows it, or it is broken."""
    with opened(file) as stream:
        window = _Window(file, stream)
        window.next_char()
        line = window.line
        value, raw = window.value()
        row = row_of(value, file.name, 1, line, window.parser, raw)
        if window.next_char():
            raise window.broken("more text after the map")
        if start == 0:
            yield row
