"""Text: a row a line, as `text`. Blank lines are no rows. For rows of several lines there are JSONL and the others."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.readers._bytes import File, not_utf8, records_of_lines
from luthier.errors import BadRow
from luthier.types import Row


def rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The lines, each without its end.

    Raises:
        UserError: another encoding, with the line; or nothing in the file.
    """
    for number, line in records_of_lines(file, start, marked_up=True):
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            yield Row({"text": line.decode().removesuffix("\n").removesuffix("\r")}, file.name, number)
        except UnicodeDecodeError as error:
            raise not_utf8(file, number, error) from None


def count(file: File) -> int:
    """How many records a file has."""
    return sum(1 for _ in records_of_lines(file, marked_up=True))
