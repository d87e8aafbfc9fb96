"""What a person sees while data are read and encoded, where that takes more than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from luthier.system.words import counted

FIRST_S = 1.0
"""Before this nothing is shown: small data are done by then."""
LINE_EVERY_S = 10.0


class RowProgress:
    """Called with the rows that are done and the share of the data that they are; use as a context.

    A bar on a terminal, a line every ten seconds elsewhere; on standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._began = self._said = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> RowProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, rows: int, share: float) -> None:
        now = self._clock()
        if now - self._began < FIRST_S:
            return
        words = f"{counted(rows, 'row')} encoded, {rows / (now - self._began):,.0f} a second"
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.description}"),
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
            self._console.print(f"{words}, {share:.0%}", soft_wrap=True)
