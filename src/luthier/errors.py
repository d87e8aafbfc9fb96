"""Errors that a person can act on: where, what was found, what was expected, and the line that mends it.

Exit codes: 2 the input is wrong, 3 the environment is, 4 the numbers diverged, 1 a bug of ours.
"""

from __future__ import annotations

import signal

EXCERPT_CHARS = 80


def excerpt(value: object, limit: int = EXCERPT_CHARS) -> str:
    """A short, one-line, safe rendering of what was found; row text never shows beyond `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class LuthierError(Exception):
    """Base of all errors that end a command with one screen of text and no traceback."""

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str = "", fix: str = "") -> None:
        super().__init__(where, found, expected, fix)
        self.where = where
        self.found = found
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}" if self.where else self.found]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class UserError(LuthierError):
    """The input is wrong: a config key, a row, a path, a model folder."""

    exit_code = 2


class EnvironmentProblem(LuthierError):
    """The machine cannot do it: no permission, a missing package, a hub out of reach, a full disk."""

    exit_code = 3


class NonFinite(LuthierError):
    """A loss or gradient was NaN or infinite; nothing was updated with it."""

    exit_code = 4


class Stopped(LuthierError):
    """A signal asked the run to end; the step was finished and saved."""

    def __init__(self, signal_number: int, where: str, fix: str) -> None:
        by = "ctrl-c" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        super().__init__(where, f"stopped by {by}; the state is saved", "", fix)
        self.exit_code = 128 + signal_number


class BadRow(UserError):
    """A row that cannot be used: where it stands, which field, what was found and what was expected."""

    def __init__(
        self, row: str, field: str, found: str, expected: str = "", fix: str = "", raw: str | None = None
    ) -> None:
        super().__init__(f"{row}  {field}" if field else row, found, expected, fix)
        self.row = row
        self.field = field
        self.raw = raw
        """the text as it stands in the file, where no values could be read from it"""
