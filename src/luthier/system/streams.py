"""Standard input, output and error, which may be closed, full, or lead to a reader that has ended."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

OUT, ERROR = 1, 2


def open_all() -> None:
    """Opens what the shell closed (`>&-`): else the first file that a command writes would get its number, and what libraries
    print would come into that file."""
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def silence(number: int) -> None:
    """From now on what is written there is lost, and nothing fails by it, the last flush at exit neither."""
    lost = os.open(os.devnull, os.O_WRONLY)
    os.dup2(lost, number)
    os.close(lost)


def is_lost() -> bool:
    """Whether standard output cannot be written; it is given up then. To be asked where something has failed: it shows in an
    empty line."""
    try:
        print(flush=True)
    except (OSError, ValueError):
        silence(OUT)
        return True
    return False


def say(text: object) -> None:
    """Prints on standard output; where that cannot be written, the work goes on without."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        silence(OUT)


def complain(text: object) -> None:
    """Prints on standard error, where that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError):
            silence(ERROR)
