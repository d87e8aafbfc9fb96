"""Files of JSON, `.json` and `.jsonl`: what is in one is told by how it begins, whatever its name says."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.readers._bytes import File, opened, records_of_lines, skip_mark_of_order, skip_white
from luthier.data.readers.json_array import array_rows, is_one_map, map_rows
from luthier.data.readers.json_lines import line_rows
from luthier.errors import BadRow
from luthier.types import Row


def json_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of an array, of one map, or of lines in a file that is only called .json.

    Raises:
        UserError: the array is broken, with the line: what follows cannot be told.
    """
    if begins_with(file, b"["):
        yield from array_rows(file, start)
    elif is_one_map(file):
        yield from map_rows(file, start)
    else:
        yield from line_rows(file, start)


def jsonl_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records; a file that begins with a bracket is read as the array that it is.

    Raises:
        UserError: another encoding, with the line; or nothing in the file.
    """
    yield from array_rows(file, start) if begins_with(file, b"[") else line_rows(file, start)


def jsonl_count(file: File) -> int:
    """How many records a file of lines has, without parsing them."""
    rows = array_rows(file) if begins_with(file, b"[") else records_of_lines(file)
    return sum(1 for _ in rows)


def begins_with(file: File, char: bytes) -> bool:
    """Whether a file's first character that is no white space is this one."""
    with opened(file) as stream:
        skip_mark_of_order(file, stream)
        skip_white(stream)
        return stream.peek(1).lstrip()[:1] == char
