"""Counts as people read them: `1 row`, `2,000 rows`."""

from __future__ import annotations


def noun(count: float, one: str, many: str = "") -> str:
    """The word that goes with a count; `many` is `one` and an s where it is not given."""
    return one if count == 1 else many or f"{one}s"


def counted(count: int, one: str, many: str = "") -> str:
    """The count and its word."""
    return f"{count:,} {noun(count, one, many)}"
