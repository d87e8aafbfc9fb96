"""Names of rows as people read them: short, and not too many."""

from __future__ import annotations

from collections.abc import Sequence

LISTED = 3
"""Rows or groups that are named of each kind; `--json` has them all."""


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
