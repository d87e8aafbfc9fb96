"""What texts come to that are stored by the beginnings they share with those before them (Parquet's DELTA_BYTE_ARRAY).

The footer knows what is stored, and a text of a few bytes can stand for a megabyte. So the lengths of the beginnings are
added up, page by page; the texts themselves are never made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from luthier.data.readers._footer import DELTA_BYTE_ARRAY, Column, fields_of, varint

CODECS = {0: "", 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""Of compression, as the format numbers them: those that can be unpacked here."""
DATA_PAGE, DATA_PAGE_V2 = 0, 3
FIRST_LOOK_BYTES, MOST_HEADER_BYTES = 16 << 10, 16 << 20
PAGE_BYTES = 1 << 10
"""What a page counts beside its values: it takes time where it holds nothing."""
AT_ONCE = 1 << 16
MOST_WIDTH = 32


def shared_bytes(path: Path, column: Column, most: int) -> int:
    """How many bytes the texts of a column of a row group have of those before them; where it is more than `most`, any such
    number.

    Raises:
        ValueError: the pages of the column are damaged.
        KeyError: they are packed in a way that is not known here.
    """
    codec, shared, seen = CODECS[column.codec], 0, 0
    with path.open("rb") as file:
        try:
            for header, body in _pages(file, column):
                data_page = header.get(5) or header.get(8)
                shared += PAGE_BYTES
                if data_page is not None:
                    seen += int(data_page[1])
                    if header.get(8) is not None and data_page[4] == DELTA_BYTE_ARRAY:
                        values = _of_second_version(data_page, body, int(header[2]), codec)
                        shared += _sum_of(values, int(data_page[1]), column.unpacked_bytes)
                    elif header.get(5) is not None and data_page[2] == DELTA_BYTE_ARRAY:
                        values = _of_first_version(_unpacked(body, int(header[2]), codec), column)
                        shared += _sum_of(values, int(data_page[1]), column.unpacked_bytes)
                if shared > most or seen >= column.values:
                    break
        except (IndexError, KeyError, TypeError, AttributeError, struct.error):
            raise ValueError("a page of a column is damaged") from None
    return shared


def _pages(file: BinaryIO, column: Column) -> Iterator[tuple[dict[int, Any], bytes]]:
    """The header of each page, and what follows it as it is stored. Raises ValueError or IndexError at what is none."""
    at, end = column.start, column.start + column.packed_bytes
    left = column.unpacked_bytes
    while at < end:
        header, length = _header(file, at, end)
        stored, unpacked = int(header[3]), int(header[2])
        left -= unpacked
        if stored < 0 or unpacked < 0 or left < 0 or stored > end - at - length:
            raise ValueError("a page that is larger than its column")
        file.seek(at + length)
        body = file.read(stored)
        if len(body) < stored:
            raise ValueError("a page that is longer than its file")
        yield header, body
        at += length + stored


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
    """Of the page that begins here, and how long it is: it has two values of the column, which are as long as they like."""
    look = FIRST_LOOK_BYTES
    while True:
        file.seek(at)
        data = file.read(min(look, end - at))
        try:
            return fields_of(data, 0)
        except (IndexError, ValueError):
            if len(data) < look or look >= MOST_HEADER_BYTES:
                raise
            look *= 4


def _unpacked(body: bytes, length: int, codec: str) -> memoryview:
    """What is packed in a page. Raises ValueError where it is something else than was said."""
    import pyarrow

    if not codec:
        return memoryview(body)
    try:
        unpacked = pyarrow.decompress(body, decompressed_size=length, codec=codec) if length else b""
    except OSError as error:  # that is what pyarrow makes of damage
        raise ValueError(str(error)) from None
    return memoryview(unpacked).cast("B")


def _of_first_version(data: memoryview, column: Column) -> memoryview:
    """The values of a page, which stand behind the levels of what is nested."""
    at = 0
    for levels in (column.repeated, column.optional):
        if levels:
            (length,) = struct.unpack_from("<I", data, at)
            at += 4 + length
    return data[at:]


def _of_second_version(page: dict[int, Any], body: bytes, length: int, codec: str) -> memoryview:
    levels = int(page[5]) + int(page[6])  # they are not packed
    if not 0 <= levels <= min(len(body), length):
        raise ValueError("levels that are longer than their page")
    return _unpacked(body[levels:], length - levels, codec if page.get(7, True) else "")


def _sum_of(data: memoryview, most_values: int, longest: int) -> int:
    """The sum of the numbers at the beginning of a page: a first one, and the differences of the others in blocks of as many
    values, each block with its least difference and, a part, how many bits the rest of each takes.

    Raises:
        ValueError: there are more than `most_values`, or one that is no length up to `longest`.
        IndexError: the page ends before them.
    """
    block, at = varint(data, 0)
    parts, at = varint(data, at)
    count, at = varint(data, at)
    value, at = _signed(data, at)
    if not count:
        return 0
    if count > most_values or not 0 <= value <= longest:
        raise ValueError("lengths that cannot be")
    if not parts or block % parts or not (of_part := block // parts) or of_part % 32:
        raise ValueError("blocks that cannot be")
    total, left = value, count - 1
    while left:
        least, at = _signed(data, at)
        widths = bytes(data[at : at + parts])
        at += len(widths)
        for width in widths:
            if not left:
                break
            here = min(of_part, left)
            value, added = _of_part(data[at:], width, here, value, least, longest)
            total, left, at = total + added, left - here, at + of_part * width // 8
        if left and len(widths) < parts:
            raise IndexError(at)
    return total


def _of_part(data: memoryview, width: int, count: int, value: int, least: int, longest: int) -> tuple[int, int]:
    """The last of `count` lengths of which the one before is `value`, and their sum."""
    if width > MOST_WIDTH or abs(least) > 1 << MOST_WIDTH:
        raise ValueError("differences that cannot be")
    if not width:
        last = value + least * count
        if not 0 <= last <= longest:
            raise ValueError("lengths that cannot be")
        return last, value * count + least * count * (count + 1) // 2
    total, weights = 0, np.int64(1) << np.arange(width, dtype=np.int64)
    for first in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - first)
        packed = np.frombuffer(data[first * width // 8 :], np.uint8, (some * width + 7) // 8)
        bits = np.unpackbits(packed, count=some * width, bitorder="little").reshape(some, width)
        lengths = value + np.cumsum(bits @ weights + least)
        if int(lengths.min()) < 0 or int(lengths.max()) > longest:
            raise ValueError("lengths that cannot be")
        value, total = int(lengths[-1]), total + int(lengths.sum())
    return value, total


def _signed(data: memoryview, at: int) -> tuple[int, int]:
    coded, at = varint(data, at)
    return (coded >> 1) ^ -(coded & 1), at
