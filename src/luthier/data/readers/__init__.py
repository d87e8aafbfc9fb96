"""How files are read: one module a kind of file. Reading streams: memory does not grow with the file.

A reader gives the records of a file in their order, each a Row or, where one cannot be read, a BadRow that takes its place.
`start` leaves out the first so many records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath

from luthier.data.readers import columnar, delimited, json_files, plain_text
from luthier.data.readers._bytes import PACKED, File, Told
from luthier.data.readers._limits import Limits, size_of
from luthier.data.readers._signatures import PICTURES, unpacking
from luthier.errors import BadRow
from luthier.types import Row

__all__ = ["ENDINGS", "PICTURES", "File", "Limits", "Told", "count", "ending_of", "records", "size_of", "unpacking"]

Reader = Callable[[File, int], Iterator[Row | BadRow]]

READERS: dict[str, Reader] = {
    ".json": json_files.json_rows,
    ".jsonl": json_files.jsonl_rows,
    ".ndjson": json_files.jsonl_rows,
    ".csv": delimited.rows,
    ".tsv": delimited.rows,
    ".txt": plain_text.rows,
    ".parquet": columnar.parquet_rows,
    ".arrow": columnar.arrow_rows,
}
"""Ending of a file's name: its reader."""

WHOLE = (".parquet", ".arrow")
"""Kinds that are packed inside; all others may have a second ending such as .gz."""

ENDINGS = " ".join(READERS) + "; all but the last two also with " + " ".join(PACKED)


def ending_of(path: PurePath) -> str | None:
    """The ending that says how a file is read; None for one that no reader knows."""
    ending = path.suffix.lower()
    if ending in PACKED:
        ending = PurePath(path.stem).suffix.lower()
        return ending if ending in READERS and ending not in WHOLE else None
    return ending if ending in READERS else None


def records(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records of a file after the first `start`.

    Raises:
        UserError: not readable as what its ending says; names file and line.
        EnvironmentProblem: not readable at all.
    """
    ending = ending_of(file.path)
    assert ending is not None
    return READERS[ending](file, start)


def count(file: File) -> int:
    """How many records a file has."""
    ending = ending_of(file.path)
    quick = {".jsonl": json_files.jsonl_count, ".ndjson": json_files.jsonl_count, ".txt": plain_text.count}
    quick |= {".parquet": columnar.parquet_count}
    if ending in quick:
        return quick[ending](file)
    return sum(1 for _ in records(file))
