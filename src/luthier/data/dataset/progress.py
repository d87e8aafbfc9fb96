"""What a person sees while data are read and encoded, where that takes more than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from luthier.system.progress import Progress, Watch
from luthier.system.words import counted


class RowProgress(Progress):
    """Called with the rows that are done and the share of the data that they are; use as a context. `reading` is called while
    a file is read before its rows are: counted, hashed, or gone through for its first row.
    """

    _encodes = False

    def __enter__(self) -> RowProgress:
        return self

    def reading(self, name: str, share: float) -> None:
        """`share` of a file is read."""
        if not self._encodes and not self.is_over:  # rows say more, and samples that stream are read again later
            self(f"reading {name}", share)

    def __call__(self, rows: int | str, share: float) -> None:
        if isinstance(rows, int) and rows:
            self._encodes = True
        super().__call__(rows if isinstance(rows, str) else encoded(rows, self.seconds), share)


def encoded(rows: int, seconds: float) -> str:
    """`2,560 rows encoded, 242 a second`."""
    return f"{counted(rows, 'row')} encoded, {rows / max(seconds, 1e-9):,.0f} a second"


def encoding_shown(watch: Watch) -> Callable[[int, float], None]:
    """What is told of rows, in words."""
    began = time.monotonic()
    return lambda rows, share: watch(encoded(rows, time.monotonic() - began), share)
