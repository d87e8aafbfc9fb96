"""The terminal as all commands draw on it: what is said plainly goes by `system/streams.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from luthier.system.secrets import hider
from luthier.system.streams import visible


class Screen(Console):
    """A console that shows what would act on the terminal, and no secret (of one that is broken over lines: but parts), and leaves
    it to the command what happens when its reader ends, as `| head` does. Colours and bars are its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hide = hider()

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(self._hide(segment.text)), segment.style)

    def on_broken_pipe(self) -> None:
        """rich would end the process with exit code 1."""
        raise BrokenPipeError
