"""The terminal as all commands write to it."""

from __future__ import annotations

from rich.console import Console


class Screen(Console):
    """A console that leaves it to the command what happens when its reader ends, as `| head` does."""

    def on_broken_pipe(self) -> None:
        """rich would end the process with exit code 1."""
        raise BrokenPipeError
