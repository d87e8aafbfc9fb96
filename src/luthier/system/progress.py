"""What a person sees of work that takes more than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from luthier.system.console import Screen

FIRST_S = 1.0
"""Before this nothing is shown: what is small is done by then."""
LINE_EVERY_S = 10.0

Watch = Callable[[str, float], None]
"""Is told how far something is, in words and as a share."""


def unwatched(_words: str, _share: float) -> None:
    """Shows nothing."""


class Progress:
    """A `Watch` that shows it; use as a context.

    A bar on a terminal, a line every ten seconds elsewhere; on standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Screen(stderr=True, highlight=False)
        self._clock = clock
        self._began = self._said = clock()
        self._bar: Bar | None = None
        self.is_over = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_over = True
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, words: str, share: float) -> None:
        now = self._clock()
        if now - self._began < FIRST_S:
            return
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._bar is None:
                self._bar = Bar(
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
