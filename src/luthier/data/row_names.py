"""`FILE:N`, the name of a row: how every `--row` is read, and matched with the names that messages and reports give.

N is the row's number: its line where a row is a line (JSONL, CSV, text), else how many records come up to it (a JSON array,
Parquet). Messages about a JSON array give both, `train.json:9 (record 3)`: that row's number is 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UserError

_NAME = re.compile(r"(?:(?P<file>.+):)?(?P<place>\d+)(?: \(record (?P<record>\d+)\))?", re.DOTALL)
NUMBER = "N is a line; in a JSON array the record's number, not its line"

LISTED = 3
"""Rows or groups that are named of each kind; `--json` has them all."""


@dataclass(frozen=True, slots=True)
class RowName:
    """A row of a file; of any file where none is named."""

    file: str
    number: int

    @classmethod
    def read(cls, text: str) -> RowName:
        """`17`, `train.jsonl:17`, or a place as a message gives it.

        Raises:
            UserError: it is none of them.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise UserError(f"--row {text}", "no row", f"FILE:N, or N alone; {NUMBER}", "--row train.jsonl:17")
        return cls(match["file"] or "", int(match["record"] or match["place"]))

    def means(self, name: str) -> bool:
        """Whether this is the row of a name. The file may be written in full, or only its last parts."""
        other = RowName.read(name)
        if other.number != self.number:
            return False
        mine, theirs = Path(self.file), Path(other.file)
        return theirs.parts[len(theirs.parts) - len(mine.parts) :] == mine.parts or mine.absolute() == theirs.absolute()


def short_names(names: Sequence[str]) -> list[str]:
    """`file:line` of each, without the file where it is that of the one before."""
    out, before = [], ""
    for name in names:
        file, _, line = name.rpartition(":")
        out.append(f":{line}" if file == before else name)
        before = file
    return out


def some(names: Sequence[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
