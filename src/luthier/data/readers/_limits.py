"""What one row and one file may grow to: beyond it nothing is made of them, and a line says how more is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.config import DataConfig
from luthier.config.sections import MOST_ROW_BYTES, MOST_ROW_MESSAGES
from luthier.errors import BadRow, UserError

ROW_BYTES, VALUE_BYTES = 16, 8
"""What a row and a value count beside their texts: a column of nulls takes no room, and its rows take time."""
FREE_BYTES = 256 << 20
MOST_TIMES = 900
"""A packed file may unpack to MOST_TIMES its size, or to FREE_BYTES if that is more: text packs to a tenth, short answers
under one long system text to a three hundredth, and gzip can make no more than a thousandth of a bomb."""


@dataclass(frozen=True, slots=True)
class Limits:
    """As the keys of `data` say them."""

    row_bytes: int = MOST_ROW_BYTES
    row_messages: int = MOST_ROW_MESSAGES
    unpacked_bytes: int | None = None
    """None: by the size of the file"""
    settable: bool = True
    """whether there is a configuration in which the key of an error can be written; a file that a command names has none"""

    @classmethod
    def of(cls, data: DataConfig) -> Limits:
        return cls(data.max_row_bytes, data.max_row_messages, data.max_unpacked_bytes)

    def of_unpacked(self, size_bytes: int) -> int:
        """What a file of this size may unpack to, in bytes."""
        return self.unpacked_bytes or max(FREE_BYTES, size_bytes * MOST_TIMES)

    def row_too_large(self, place: str, size_bytes: int, start: str = "") -> BadRow:
        """The error of a row of `size_bytes`, of whose text `start` is the beginning."""
        found, most = f"a row of {size_bytes:,} bytes", f"at most {self.row_bytes:,} bytes"
        return BadRow(place, "", found, most, self.fix(f"data.max_row_bytes={size_bytes} reads it"), raw=start)

    def too_many_messages(self, place: str, count: int) -> BadRow:
        """The error of a row of `count` messages."""
        fix = f"data.max_row_messages={count} takes it; the work grows with the square of their number"
        return BadRow(place, "", f"{count:,} messages", f"at most {self.row_messages:,}", self.fix(fix))

    def fix(self, line: str) -> str:
        """The line, where what it says can be set."""
        return line if self.settable else ""


def unpacks_too_far(
    name: str, limits: Limits, found: int, size_bytes: int, most: int, whole: bool = False
) -> UserError:
    """The error of a file of `size_bytes` that unpacks to `found` bytes (if not `whole`, to more) where `most` are allowed."""
    beyond = "" if whole else "more than "
    enough = found if whole else 4 * most
    return UserError(
        name,
        f"it unpacks to {beyond}{found:,} bytes from {size_bytes:,}",
        f"at most {most:,} bytes",
        limits.fix(f"data.max_unpacked_bytes={enough} if you trust it"),
    )


def size_of(value: object) -> int:
    """About how many bytes the values of a row take: characters of all texts, and something for every value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, value)) + sum(map(size_of, value.values())) + VALUE_BYTES
    return sum(map(size_of, value)) + VALUE_BYTES if isinstance(value, list | tuple) else VALUE_BYTES
