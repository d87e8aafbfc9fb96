"""The footer of a Parquet file, as far as it says how much there is.

pyarrow reads it too, but ends the whole process where the account of a column is damaged (an exception of C++ that nobody
catches), so it is never asked for one. The footer is Thrift's compact protocol: fields of structs, each a
number and a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
WHOLE_NUMBERS = (4, 5, 6)
MOST_NESTED = 32
BYTE_ARRAY, FIXED_LENGTH = 6, 7
DELTA_BYTE_ARRAY = 7
MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Column:
    """What a row group says of one of its columns."""

    kind: int
    encodings: tuple[int, ...]
    repeated: int
    optional: int
    """how deep it is nested in lists, and in what may be left out"""
    codec: int
    start: int
    """where its first page stands in the file"""
    values: int
    unpacked_bytes: int
    packed_bytes: int
    has_dictionary: bool
    length: int
    """of each value, where all have the same"""


@dataclass(frozen=True, slots=True)
class Group:
    rows: int
    columns: tuple[Column, ...]


def footer_of(path: Path) -> tuple[int, list[Group]]:
    """How many rows a file says that it has, and its row groups. Raises ValueError where there is no footer to be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if len(tail) < 8 or tail[4:] != MAGIC:
            raise ValueError("it does not end as one")
        (length,) = struct.unpack_from("<I", tail)
        if length > size - 12:
            raise ValueError("its footer is larger than the file")
        file.seek(size - 8 - length)
        data = file.read(length)
    try:
        fields, _ = fields_of(data, 0)
        leaves = list(_leaves(fields[2]))
        return int(fields[3]), [_group(one, leaves) for one in fields[4]]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error):
        raise ValueError("its footer is damaged") from None


def _leaves(elements: list[dict[int, Any]]) -> Iterator[tuple[int, int, int]]:
    """The length of the values of each column, how many lists it lies in, and in how much that may be left out or is a list."""
    above = [(1, 0, 0)]  # of what is open: how much of it is still to come, and its levels
    for index, element in enumerate(elements):
        while not above[-1][0]:
            above.pop()
        left, repeated, optional = above[-1]
        above[-1] = left - 1, repeated, optional
        kind = element.get(3, 0) if index else 0
        repeated, optional = repeated + (kind == 2), optional + (kind in (1, 2))
        if children := int(element.get(5, 0)):
            above.append((children, repeated, optional))
        else:
            yield int(element.get(2, 0)), repeated, optional


def _group(fields: dict[int, Any], leaves: list[tuple[int, int, int]]) -> Group:
    columns = []
    for chunk, (length, repeated, optional) in zip(fields[1], leaves, strict=True):
        one = chunk[3]
        start = min(int(one[9]), int(one.get(11) or one[9]))
        numbers = (int(one[5]), int(one[6]), int(one[7]))
        nested = (repeated, optional, int(one[4]), start)
        columns.append(Column(int(one[1]), tuple(one[2]), *nested, *numbers, 11 in one, length))
    return Group(int(fields[3]), tuple(columns))


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")


def fields_of(data: bytes, at: int, deeper: int = MOST_NESTED) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends. Raises IndexError or ValueError where it is none."""
    if not deeper:
        raise ValueError("nested too deeply")
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            coded, at = varint(data, at)
            number = (coded >> 1) ^ -(coded & 1)
        kind = head & 0xF
        if kind in (TRUE, FALSE):
            fields[number] = kind == TRUE
        else:
            fields[number], at = _value(data, at, kind, deeper)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, deeper: int) -> tuple[Any, int]:
    if kind in WHOLE_NUMBERS:
        coded, at = varint(data, at)
        return (coded >> 1) ^ -(coded & 1), at
    if kind == BINARY:
        length, at = varint(data, at)
        if length > len(data) - at:
            raise ValueError("a text that is longer than its footer")
        return data[at : at + length], at + length
    if kind in (LIST, SET):
        return _list(data, at, deeper)
    if kind == STRUCT:
        return fields_of(data, at, deeper - 1)
    if kind in (TRUE, FALSE, BYTE):
        return data[at], at + 1
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    raise ValueError("a value of no kind")  # its footer has no maps


def _list(data: bytes, at: int, deeper: int) -> tuple[list[Any], int]:
    if not deeper:
        raise ValueError("nested too deeply")
    count, kind = data[at] >> 4, data[at] & 0xF
    at += 1
    if count == 15:
        count, at = varint(data, at)
    if count > len(data) - at:
        raise ValueError("a list that is longer than its footer")
    values = []
    for _ in range(count):
        value, at = _value(data, at, kind, deeper - 1)
        values.append(value)
    return values, at
