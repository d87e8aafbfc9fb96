"""What a row is called: how every `--row` is read, and matched with the names that messages and reports give.

There is one name, `Row.place`: `train.jsonl:17`, the line, where a row is a line or its file has no lines (then the number of the
record); `train.json:9 (record 3)` in a JSON array, the line where the record begins and how many come up to it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.errors import BadRow, UserError
from luthier.types import Row

_LINE = re.compile(r"(?:(?P<file>.+):)?(?P<line>\d+)(?: \(record (?P<record>\d+)\))?", re.DOTALL)
_RECORD = re.compile(r"(?:(?P<file>.+?)[: ]?)?(?:#(?P<number>\d+)|\(record (?P<record>\d+)\))", re.DOTALL)
NAMES = "FILE:LINE, LINE alone, or #N for record N of a JSON array"

LISTED = 3
"""Rows or groups that are named of each kind; `--json` has them all."""


@dataclass(frozen=True, slots=True)
class RowName:
    """A row of a file; of any file where none is named."""

    file: str
    line: int | None
    record: int | None
    """which of the file's records, from 1; where it is given the line does not count"""

    @classmethod
    def read(cls, text: str) -> RowName:
        """`17`, `train.jsonl:17`, `#3`, `train.json:#3`, `(record 3)`, or a name as a message gives it.

        Raises:
            UserError: it is none of them.
        """
        if match := _LINE.fullmatch(text):
            return cls(match["file"] or "", int(match["line"]), int(match["record"]) if match["record"] else None)
        if match := _RECORD.fullmatch(text):
            return cls(match["file"] or "", None, int(match["number"] or match["record"]))
        raise UserError(f"--row {text}", "no row", NAMES, "--row train.jsonl:17")

    def is_in(self, source: str) -> bool:
        """Whether it may be a row of this file, of which it may have the whole path or only the last parts."""
        mine, theirs = Path(self.file), Path(source)
        return theirs.parts[len(theirs.parts) - len(mine.parts) :] == mine.parts or mine.absolute() == theirs.absolute()

    def means(self, name: str) -> bool:
        """Whether this is the row that is called so."""
        other = RowName.read(name)
        mine, theirs = (self.line, other.line) if self.record is None else (self.record, other.record or other.line)
        return mine == theirs and self.is_in(other.file)


def row_called(wanted: RowName, rows: Iterable[Row | BadRow]) -> tuple[Row | BadRow | None, str]:
    """The row of a file, and the name of the one before it, which is the nearest where there is none. Reads no further than it
    must. Where all records of an array stand on one line, a line alone counts them.

    Raises:
        UserError: several rows begin at that line.
    """
    found, before, called = None, "", set[str]()
    one_line, counted = True, None
    for row in rows:
        name = row.place if isinstance(row, Row) else row.row
        if not _LINE.fullmatch(name):  # what is said of the whole file
            continue
        here = RowName.read(name)
        one_line = one_line and here.record is not None and here.line == 1
        if one_line and wanted.record is None and here.record == wanted.line:
            counted = row
        if wanted.means(name):
            found = found or row
            called.add(name)
        elif found is not None or (
            wanted.line is not None and (here.line or 0) > wanted.line and wanted.record is None
        ):
            break
        else:
            before = name
        if found is not None and (here.record is None or wanted.record is not None):
            break
    if one_line and counted is not None:
        return counted, before
    if len(called) > 1:
        first = RowName.read(min(called, key=lambda name: RowName.read(name).record or 0))
        raise UserError(
            f"--row {wanted.line}",
            f"{len(called):,} records begin at line {wanted.line} of {first.file}",
            "one of them",
            option_of(replace(first, line=None)),
        )
    return found, before


def option_of(name: RowName) -> str:
    """`--row NAME` as a shell takes it."""
    file = f"{name.file}:" if name.file else ""
    return f"--row {shlex.quote(f'{file}{name.line}' if name.record is None else f'{file}#{name.record}')}"


def short_names(names: Sequence[str]) -> list[str]:
    """Each without the file where it is that of the one before."""
    out, before = [], ""
    for name in names:
        file, _, line = name.rpartition(":")
        out.append(f":{line}" if file == before else name)
        before = file
    return out


def some(names: Sequence[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
