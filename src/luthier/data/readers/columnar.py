"""Parquet and Arrow, by batches. Records are numbered from 1.

A column of maps has one schema for all rows, so a key that one row's map lacks is there with a null. Nulls inside of maps
are therefore left out: else every tool would be shown with the parameters of all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.data.readers._bytes import File, unreadable
from luthier.errors import BadRow, UserError
from luthier.types import Row

BATCH_ROWS = 1024
ARROW_FILE = b"ARROW1"


def parquet_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of a Parquet file; row groups before `start` are not read.

    Raises:
        UserError: the file is no Parquet, or damaged.
    """
    import pyarrow.parquet

    with (
        _damage_named(file, "Parquet"),
        pyarrow.parquet.ParquetFile(file.path, page_checksum_verification=True) as opened,
    ):
        groups, number = opened.num_row_groups, 0
        first = 0
        while first < groups and number + opened.metadata.row_group(first).num_rows <= start:
            number += opened.metadata.row_group(first).num_rows
            first += 1
        if first == groups:
            return
        batches = opened.iter_batches(batch_size=BATCH_ROWS, row_groups=list(range(first, groups)))
        yield from _rows(file, batches, number, start)


def parquet_count(file: File) -> int:
    """How many records a Parquet file has, as its footer says. Raises UserError where there is none."""
    import pyarrow.parquet

    with _damage_named(file, "Parquet"):
        return int(pyarrow.parquet.read_metadata(file.path).num_rows)


def arrow_rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of an Arrow file or of a stream, memory-mapped.

    Raises:
        UserError: the file is no Arrow, or damaged.
    """
    import pyarrow
    import pyarrow.ipc

    with _damage_named(file, "Arrow"), pyarrow.memory_map(str(file.path)) as source:
        is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
        source.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(source))
        yield from _rows(file, batches, 0, start)


def _rows(file: File, batches: Iterator[Any], number: int, start: int) -> Iterator[Row | BadRow]:
    """Rows of batches of which the first begins after `number` records."""
    for batch in batches:
        batch.validate()
        for first in range(max(0, start - number), batch.num_rows, BATCH_ROWS):
            part = batch.slice(first, BATCH_ROWS)
            for index, values in enumerate(part.to_pylist(), start=number + first + 1):
                yield Row({name: without_nulls(value) for name, value in values.items()}, file.name, index)
        number += batch.num_rows


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
        if not file.path.stat().st_size:
            raise UserError(file.name, f"no readable {kind} file: it is empty", f"a whole {kind} file", "make it again")
        yield
    except pyarrow.ArrowException as error:
        raise _damaged(file, kind, error) from None
    except OSError as error:
        raise (_damaged(file, kind, error) if error.errno is None else unreadable(file.name, error)) from None


def _damaged(file: File, kind: str, error: Exception) -> UserError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return UserError(file.name, f"no readable {kind} file: {why}", f"a whole {kind} file", "fetch or write it again")
