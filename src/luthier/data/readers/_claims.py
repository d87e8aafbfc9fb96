"""What columnar files claim to hold, looked at before anything is made of it; and what rows come to, without making them.

In a few kilobytes such a file can say that it has any number of rows, that a text has a gigabyte, or one large text and a
million references to it. pyarrow believes it all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.readers._beginnings import shared_bytes
from luthier.data.readers._bytes import File
from luthier.data.readers._footer import BYTE_ARRAY, DELTA_BYTE_ARRAY, FIXED_LENGTH, Column, footer_of
from luthier.data.readers._limits import ROW_BYTES, VALUE_BYTES, unpacks_too_far
from luthier.errors import UserError
from luthier.types import Ints

ARROW_FILE = b"ARROW1"
BATCH_BYTES = 64 << 20
"""What is read of a file at once, where single rows are not larger."""
BATCH_ROWS = 1024

TEXTS = ("binary", "string", "large_binary", "large_string", "binary_view", "string_view")
"""Types of values that are as long as they like."""


@dataclass(frozen=True, slots=True)
class Group:
    """A row group of a Parquet file."""

    rows: int
    rows_at_once: int
    dictionaries: tuple[int, ...]
    """columns of texts of which each is stored once"""


def damaged(file: File, kind: str, why: str) -> UserError:
    return UserError(file.name, f"no readable {kind} file: {why}", f"a whole {kind} file", "fetch or write it again")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def of_parquet(file: File) -> list[Group]:
    """The row groups, as the footer says. Raises UserError where it cannot be true, or is more than the file may unpack to."""
    size = file.path.stat().st_size
    most = file.limits.of_unpacked(size)
    try:
        said, found = footer_of(file.path)
    except ValueError as error:
        raise damaged(file, "Parquet", first_line(error)) from None
    claimed = 0
    for index, group in enumerate(found):
        if group.rows < 0:
            raise damaged(file, "Parquet", f"row group {index} has {group.rows:,} rows")
        claimed += group.rows * (ROW_BYTES + VALUE_BYTES * len(group.columns))
        for column in group.columns:
            if min(column.unpacked_bytes, column.packed_bytes, column.values, column.length, column.start) < 0:
                raise damaged(file, "Parquet", f"a column of row group {index} has less than nothing")
            claimed += _of_column(column)
    groups = list[Group]()
    for group in found:
        at_once = BATCH_ROWS
        for column in group.columns:
            shared, value = _of_beginnings(file, column, group.rows, most - claimed)
            claimed += shared
            at_once = min(at_once, BATCH_BYTES // max(1, value))
        texts = [number for number, one in enumerate(group.columns) if one.has_dictionary and one.kind == BYTE_ARRAY]
        groups.append(Group(group.rows, max(1, at_once), tuple(texts)))
    if (total := sum(group.rows for group in groups)) != said:
        raise damaged(file, "Parquet", f"it says that it has {said:,} rows, and its groups have {total:,}")
    if claimed > most:
        raise unpacks_too_far(file.name, file.limits, claimed, size, most, whole=True)
    return groups


def _of_column(column: Column) -> int:
    """What the column of a row group comes to by itself, in bytes."""
    if column.kind == FIXED_LENGTH:  # its nulls take as much room as its values
        return max(column.unpacked_bytes, column.values * column.length)
    return column.unpacked_bytes + (column.values * VALUE_BYTES if column.repeated else 0)


def _of_beginnings(file: File, column: Column, rows: int, left: int) -> tuple[int, int]:
    """What the values of a column take from those before them, and how large those of a row can be, in bytes."""
    own, shared = _of_column(column), 0
    if column.kind == BYTE_ARRAY and DELTA_BYTE_ARRAY in column.encodings and left >= 0:
        try:
            shared = shared_bytes(file.path, column, left)
        except KeyError:  # packed in a way of old; what is known is that no value is longer than all that is stored
            shared = column.values * column.unpacked_bytes if column.repeated else 0
            return (shared if shared > left else 0), column.unpacked_bytes
        except ValueError as error:
            raise damaged(file, "Parquet", first_line(error)) from None
    return shared, max((own + shared) // max(1, rows), column.length if column.kind == FIXED_LENGTH else 0)


def dictionaries(groups: list[Group], schema: Any) -> list[str]:
    """Columns of texts of which each is stored once: they are read so, else one text would be unpacked in every row."""
    return [schema.column(number).path for number in sorted({one for group in groups for one in group.dictionaries})]


def of_arrow(file: File, source: Any, is_file: bool) -> None:
    """Raises UserError where the messages of an Arrow file or stream claim more than it may unpack to."""
    import pyarrow
    import pyarrow.ipc

    size = file.path.stat().st_size
    most = file.limits.of_unpacked(size)
    start = len(ARROW_FILE) + 2 if is_file else 0  # padded to eight bytes
    source.seek(start)
    messages = pyarrow.ipc.MessageReader.open_stream(source)
    claimed = batches = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        if message.type in ("record batch", "dictionary"):
            batches += message.type == "record batch"
            try:
                claimed += _of_message(message)
            except (struct.error, OverflowError, ValueError):
                raise damaged(file, "Arrow", f"its {message.type} {batches} cannot be told apart") from None
        if claimed > most:
            raise unpacks_too_far(file.name, file.limits, claimed, size, most, whole=True)
    if is_file:
        source.seek(0)
        if (said := pyarrow.ipc.open_file(source).num_record_batches) != batches:
            raise damaged(file, "Arrow", f"its end says that it has {said:,} batches, and there are {batches:,}")
    source.seek(start)


def _of_message(message: Any) -> int:
    """What a batch comes to, in bytes. Raises struct.error or ValueError where its header cannot be."""
    data, body = memoryview(message.metadata), memoryview(message.body)
    (root,) = struct.unpack_from("<I", data)
    header = _follow(data, _field(data, root, 2))
    if message.type == "dictionary":
        header = _follow(data, _field(data, header, 1))
    length_at, nodes_at, buffers_at, packed_at = (_field(data, header, number) for number in range(4))
    (rows,) = struct.unpack_from("<q", data, length_at) if length_at else (0,)
    values = rows
    if nodes_at:
        vector = _follow(data, nodes_at)
        (count,) = struct.unpack_from("<I", data, vector)
        values = sum(abs(struct.unpack_from("<q", data, vector + 4 + 16 * number)[0]) for number in range(count))
    if rows < 0:
        raise ValueError("rows below zero")
    claimed = rows * ROW_BYTES + values * VALUE_BYTES
    if not buffers_at:
        return int(claimed)
    vector = _follow(data, buffers_at)
    (count,) = struct.unpack_from("<I", data, vector)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", data, vector + 4 + 16 * number)
        if length < 0 or offset < 0:
            raise ValueError("a buffer below zero")
        if packed_at and length >= 8:
            (unpacked,) = struct.unpack_from("<q", body, offset)
            length = unpacked if unpacked >= 0 else length
        claimed += length
    return int(claimed)


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a table of a flatbuffer stands; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (length,) = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * number >= length:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
    return table + offset if offset else 0


def _follow(data: memoryview, at: int) -> int:
    """Where what a field points to stands."""
    if not at:
        raise ValueError("a part is missing")
    return at + int(struct.unpack_from("<I", data, at)[0])


def sizes_of(file: File, kind: str, batch: Any) -> Ints:
    """[rows] int64: what each row of a batch comes to, in bytes.

    Raises:
        UserError: parts of it lie outside of it, or it has a type that stands for no JSON.
    """
    sizes = np.full(batch.num_rows, ROW_BYTES, np.int64)
    most = file.limits.of_unpacked(file.path.stat().st_size)

    def too_many(values: int) -> None:
        if values * VALUE_BYTES > most:
            raise unpacks_too_far(file.name, file.limits, values * VALUE_BYTES, file.path.stat().st_size, most)

    try:
        for column in batch.columns:
            sizes += _sizes(column, too_many)
    except (IndexError, ValueError, OverflowError) as error:
        raise damaged(file, kind, first_line(error)) from None
    except NotImplementedError as error:
        fix = "write it again with columns of texts, numbers, lists and maps"
        raise UserError(file.name, f"a column of type {error}", "columns that stand for JSON", fix) from None
    return sizes


def _sizes(array: Any, check: Callable[[int], None]) -> Ints:
    """[values] int64: bytes of each value. Raises IndexError, ValueError or NotImplementedError."""
    import pyarrow.compute
    from pyarrow import types

    check(len(array))
    kind, own = array.type, np.full(len(array), VALUE_BYTES, np.int64)
    if isinstance(array, pyarrow.ExtensionArray):
        return _sizes(array.storage, check)
    if types.is_dictionary(kind):
        indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        once = _sizes(array.dictionary, check)
        return own + (_at(once, indices) if len(once) else 0)
    if types.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy().astype(np.int64)
        places = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
        return own + _at(_sizes(array.values, check), places)
    if types.is_struct(kind):
        return own + sum((_sizes(field, check) for field in array.flatten()), np.zeros(len(array), np.int64))
    if types.is_nested(kind):
        return own + _of_lists(array, check)
    if types.is_fixed_size_binary(kind):
        return own + np.int64(kind.byte_width)
    if not any(getattr(types, f"is_{name}")(kind) for name in TEXTS):
        return own
    if types.is_string_view(kind) or types.is_binary_view(
        kind
    ):  # of sixteen bytes, of which the first four are its length
        views = np.frombuffer(array.buffers()[1], "<i4")[4 * array.offset :: 4][: len(array)]
        found: Ints = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, views).astype(np.int64)
    else:
        lengths = pyarrow.compute.binary_length(array).fill_null(0)
        found = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    if (found < 0).any():
        raise ValueError("a text of less than no bytes")
    return own + found


def unshared(kind: Any) -> Any:
    """A type without dictionaries in it: each value where it stands."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        return kind.value_type
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(unshared(field.type)) for field in kind])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(unshared(kind.value_type)))
    if types.is_map(kind):
        return pyarrow.map_(unshared(kind.key_type), unshared(kind.item_type))
    return kind


def _of_lists(array: Any, check: Callable[[int], None]) -> Ints:
    """[lists] int64: bytes of all that stands in each list or map."""
    from pyarrow import types

    kind = array.type
    if types.is_union(kind):
        raise NotImplementedError(str(kind)[:60])
    until = np.concatenate([np.zeros(1, np.int64), np.cumsum(_sizes(array.values, check))])
    if types.is_fixed_size_list(kind):
        first = (array.offset + np.arange(len(array), dtype=np.int64)) * kind.list_size
        last = first + kind.list_size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        if types.is_list_view(kind) or types.is_large_list_view(kind):
            first, last = offsets, offsets + array.sizes.to_numpy().astype(np.int64)
        else:
            first, last = offsets[:-1], offsets[1:]
    if (last < first).any():
        raise ValueError("a list of less than no values")
    return _at(until, last) - _at(until, first)


def _at(values: Ints, places: Ints) -> Ints:
    if len(places) and (int(places.min()) < 0 or int(places.max()) >= len(values)):
        raise IndexError("a reference to a value that is not there")
    found: Ints = values[places]
    return found
