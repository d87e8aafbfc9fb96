"""Parquet and Arrow, by batches. Records are numbered from 1.

A column of maps has one schema for all rows, so a key that one row's map lacks is there with a null. Nulls inside of maps
are therefore left out: else every tool would be shown with the parameters of all others.

What a file claims is looked at before values are made of it (`_claims.py`): a few kilobytes can claim any number of rows, or
one large text in each of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from luthier.data.readers import _claims
from luthier.data.readers._bytes import File, unreadable
from luthier.data.readers._limits import unpacks_too_far
from luthier.data.readers._signatures import HEAD_BYTES, refuse_another_kind
from luthier.errors import BadRow, EnvironmentProblem, UserError, excerpt
from luthier.types import Ints, Row

MADE_ROWS = 1024
PART_BYTES = 16 << 20
"""Of the values that are made at once, where single rows are not larger."""


def parquet_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of a Parquet file; row groups before `start` are not read.

    Raises:
        UserError: the file is no Parquet, damaged, or claims more than `data.max_unpacked_bytes`.
    """
    import pyarrow.parquet

    with _damage_named(file, "Parquet"):
        groups = _claims.of_parquet(file)
        metadata = pyarrow.parquet.read_metadata(file.path)
        repeated = _claims.dictionaries(groups, metadata.schema)
        with pyarrow.parquet.ParquetFile(
            file.path, page_checksum_verification=True, read_dictionary=repeated
        ) as opened:
            number, first = 0, 0
            while first < len(groups) and number + groups[first].rows <= start:
                number += groups[first].rows
                first += 1
            unpacked = _Unpacked(file)
            for index, group in enumerate(groups[first:], first):
                batches = opened.iter_batches(batch_size=group.rows_at_once, row_groups=[index])
                end = yield from _rows(file, "Parquet", batches, number, start, unpacked)
                if end != number + group.rows:
                    why = f"row group {index} has {group.rows:,} rows, and {end - number:,} can be read"
                    raise _claims.damaged(file, "Parquet", why)
                number = end
                file.told(file.name, number / max(1, sum(one.rows for one in groups)))


def parquet_count(file: File) -> int:
    """How many records a Parquet file has, as its footer says. Raises UserError where there is none."""
    with _damage_named(file, "Parquet"):
        return sum(group.rows for group in _claims.of_parquet(file))


def arrow_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of an Arrow file or of a stream, memory-mapped.

    Raises:
        UserError: the file is no Arrow, damaged, or claims more than `data.max_unpacked_bytes`.
    """
    import pyarrow
    import pyarrow.ipc

    with _damage_named(file, "Arrow"), pyarrow.memory_map(str(file.path)) as source:
        is_file = source.read(len(_claims.ARROW_FILE)) == _claims.ARROW_FILE
        _claims.of_arrow(file, source, is_file)
        batches = iter(pyarrow.ipc.open_stream(source))  # a file is a stream with an end of its own
        yield from _rows(file, "Arrow", batches, 0, start, _Unpacked(file))


class _Unpacked:
    """Counts what the rows of a file come to."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._size = file.path.stat().st_size
        self._most = file.limits.of_unpacked(self._size)
        self._count = 0

    def add(self, size_bytes: int) -> None:
        """Raises UserError where it is too much."""
        self._count += size_bytes
        if self._count > self._most:
            raise unpacks_too_far(self._file.name, self._file.limits, self._most, self._size, self._most)


def _rows(
    file: File, kind: str, batches: Iterator[Any], number: int, start: int, unpacked: _Unpacked
) -> Generator[Row | BadRow, None, int]:
    """Rows of batches of which the first begins after `number` records; returns the number of the last."""
    for batch in batches:
        batch.validate()
        if len(set(batch.schema.names)) < len(batch.schema.names):
            found = f"the columns are {excerpt(batch.schema.names)}"
            raise UserError(file.name, found, "a name for each column, each once", "name the columns")
        skipped = max(0, start - number)
        if skipped < batch.num_rows:
            rest = batch.slice(skipped)
            sizes = _claims.sizes_of(file, kind, rest)
            unpacked.add(int(sizes.sum()))
            yield from _values(file, rest, sizes, number + skipped + 1)
        number += batch.num_rows
    return number


def _values(file: File, part: Any, sizes: Ints, number: int) -> Iterator[Row | BadRow]:
    """The rows of a part of a batch, of which the first has this number; as many at once as memory has room for."""
    at, most = 0, file.limits.row_bytes
    until = np.cumsum(sizes)
    while at < len(sizes):
        if sizes[at] > most:
            yield file.limits.row_too_large(f"{file.name}:{number + at}", int(sizes[at]))
            at += 1
            continue
        before = int(until[at - 1]) if at else 0
        end = min(at + MADE_ROWS, max(at + 1, int(np.searchsorted(until, before + PART_BYTES, side="right"))))
        if len(large := np.flatnonzero(sizes[at:end] > most)):
            end = at + int(large[0])
        yield from _made(file, part.slice(at, end - at), number + at)
        at = end


def _made(file: File, part: Any, number: int) -> Iterator[Row | BadRow]:
    """The rows; one that has a text which is none is a BadRow in its place."""
    import pyarrow

    try:
        made = part.cast(pyarrow.schema([one.with_type(_claims.unshared(one.type)) for one in part.schema]))
        made.validate(full=True)
        values = made.to_pylist()
    except (ValueError, OverflowError, LookupError) as error:  # pyarrow's own errors are ValueErrors
        if part.num_rows > 1:
            middle = part.num_rows // 2
            yield from _made(file, part.slice(0, middle), number)
            yield from _made(file, part.slice(middle), number + middle)
            return
        why = "a text that is not UTF-8" if "utf" in str(error).lower() else _claims.first_line(error)
        yield BadRow(f"{file.name}:{number}", "", why, "values that can be read")
        return
    for index, row in enumerate(values, start=number):
        yield Row({name: without_nulls(value) for name, value in row.items()}, file.name, index)


def without_nulls(value: Any) -> Any:
    """The value of a column without the nulls inside of its maps."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


@contextmanager
def _damage_named(file: File, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        with file.path.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
        if not head:
            raise UserError(file.name, f"no readable {kind} file: it is empty", f"a whole {kind} file", "make it again")
        if not head.startswith((b"PAR1", _claims.ARROW_FILE)):
            refuse_another_kind(file.name, head, f"a whole {kind} file")
        yield
    except pyarrow.ArrowMemoryError as error:
        found = f"there is not enough memory to read it: {_claims.first_line(error)}"
        raise EnvironmentProblem(file.name, found, "more memory", "write it again with smaller row groups") from None
    except (pyarrow.ArrowException, ValueError, LookupError, OverflowError) as error:  # names that are no text, say
        raise _claims.damaged(file, kind, _claims.first_line(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise unreadable(file.name, error) from None
        raise _claims.damaged(file, kind, _claims.first_line(error)) from None
