"""From a row of a file to an example: one file a format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from luthier.types import Example, Row

MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Columns of what is no text. A row that has something there would be learned without what it is about."""


class Format(Protocol):
    """How rows are read. One file in `formats/`, whose class inherits from this one: what it leaves out is as here."""

    columns: tuple[str, ...]
    """Those it is known by, for the error where no format fits."""
    verdicts: tuple[str, ...] = ()
    """Columns that say which answers are good, where it reads such: a row that has them is none of another format's."""

    @classmethod
    def fit(cls, columns: frozenset[str], first: Mapping[str, Any]) -> int | None:
        """How well a row fits, by its columns and values. Of all formats the best one is taken, and there must be one.

        0: not at all; else how many columns it knows the row by, and more where their values have a form of their own. None: this row
        does not say whether it is one of these, another one may.
        """

    def parse(self, row: Row) -> Example:
        """What the row means.

        Raises:
            BadRow: it cannot be used.
        """
