"""What a person sees while data are read and encoded, where that takes more than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from luthier.system.console import Screen
from luthier.system.words import counted

FIRST_S = 1.0
"""Before this nothing is shown: small data are done by then."""
LINE_EVERY_S = 10.0


class RowProgress:
    """Called with the rows that are done and the share of the data that they are; use as a context. `reading` is called while
    a file is read before its rows are: counted, hashed, or gone through for its first row.

    A bar on a terminal, a line every ten seconds elsewhere; on standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Screen(stderr=True, highlight=False)
        self._clock = clock
        self._began = self._said = clock()
        self._bar: Progress | None = None
        self._encodes = self._is_over = False

    def __enter__(self) -> RowProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        if self._bar is not None:
            self._bar.stop()

    def reading(self, name: str, share: float) -> None:
        """`share` of a file is read."""
        if not self._encodes and not self._is_over:  # rows say more, and samples that stream are read again later
            self._show(f"reading {name}", share, self._clock())

    def __call__(self, rows: int, share: float) -> None:
        if rows:
            self._encodes = True
        now = self._clock()
        speed = rows / max(now - self._began, 1e-9)
        self._show(f"{counted(rows, 'row')} encoded, {speed:,.0f} a second", share, now)

    def _show(self, words: str, share: float, now: float) -> None:
        if now - self._began < FIRST_S:
            return
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=None),
                    TextColumn("{task.percentage:.0f} %"),
                    console=self._console,
                    expand=True,
                    transient=True,
                )
                self._bar.add_task(words, total=1.0)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], description=words, completed=share)
        elif now - self._said >= LINE_EVERY_S:
            self._said = now
            self._console.print(f"{words}, {share:.0%}", soft_wrap=True, markup=False)
