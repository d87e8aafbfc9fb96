"""Regular expressions of a configuration: what they match, in bounded time."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from luthier.errors import UserError, excerpt

LIMIT_S = 5.0
"""For all names of a model. One that is meant well takes milliseconds; `(a+)+` may take longer than anybody lives."""
ALL_LINEAR = "all-linear"
PLAIN_NAMES = re.compile(r"\w+(\s*,\s*\w+)*")
"""A text that is meant as names: as an expression over whole names it would match next to nothing."""


def as_names(asked: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """`target_modules` with a text that is meant as names as these; `all-linear` and an expression as they are."""
    if isinstance(asked, str) and asked != ALL_LINEAR and PLAIN_NAMES.fullmatch(asked):
        return tuple(name.strip() for name in asked.split(","))
    return asked


def matched(pattern: str, names: Iterable[str], where: str) -> set[str]:
    """The names that a pattern matches from their beginning to their end.

    Args:
        where: the key, for messages.

    Raises:
        UserError: it is no regular expression, or it is still being tried after LIMIT_S.
    """
    try:
        with _at_most(LIMIT_S):
            return {name for name in names if re.fullmatch(pattern, name)}
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            where, f"{excerpt(pattern)} is no regular expression: {error}", "for example .*\\.(q|v)_proj"
        ) from None
    except TimeoutError:
        raise UserError(
            where,
            f"{excerpt(pattern)} is still being tried on the names of the model after {LIMIT_S:g} seconds",
            "an expression without a repetition inside a repetition, such as (a+)+",
        ) from None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Ends what runs inside with a TimeoutError: `re` looks for signals while it matches.

    Signals reach the main thread alone; in another, of a program that uses luthier, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
