"""Counts as people read them: `1 row`, `2,000 rows`."""

from __future__ import annotations


def noun(count: float, one: str, many: str = "") -> str:
    """The word that goes with a count; `many` is `one` and an s where it is not given."""
    return one if count == 1 else many or f"{one}s"


def counted(count: int, one: str, many: str = "") -> str:
    """The count and its word."""
    return f"{count:,} {noun(count, one, many)}"


def human_bytes(size: int) -> str:
    """`98.4 MB`: decimal units, as disks and hubs count."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
