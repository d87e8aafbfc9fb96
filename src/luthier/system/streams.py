"""Standard input, output and error, which may be closed, full, or lead to a reader that has ended. What is written there
is shown, and acts on no terminal: it may come from a stranger's row, path, template or model.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from luthier.system.secrets import redacted

OUT, ERROR = 1, 2

Say = Callable[[str], None]
"""What tells a person how far the work is."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, escape among them; lines and tabs stay
    "\u061c\u202a-\u202e\u2066-\u2069"  # turn the direction of what stands around them
    "\u180e\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # not seen at all
    "\ud800-\udfff]"  # halves of characters, which a name of a file may have: no stream takes them
)


# U+200B, U+200E and U+200F are shown as they are: Khmer and Thai, Hebrew and Arabic are written with them, and what stands
# around them keeps its direction.


def visible(text: str) -> str:
    """The text with escapes (as JSON writes them) in place of what a terminal would obey, or not show."""
    return _HIDDEN.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def show(text: object = "", end: str = "\n") -> None:
    """Prints a result on standard output, without secrets.

    Raises:
        OSError: it cannot be written.
    """
    print(visible(redacted(str(text))), end=end, flush=True)


def hand_on(text: str, end: str = "\n") -> None:
    """Prints what a program or a file may take as it is: to the letter, except on a terminal. Raises as `show`."""
    if sys.stdout.isatty():
        show(text, end)
    else:
        print(text, end=end, flush=True)


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
    """Prints on standard output, without secrets; where that cannot be written, the work goes on without."""
    try:
        show(text)
    except (OSError, ValueError):
        silence(OUT)


def complain(text: object) -> None:
    """Prints on standard error, without secrets, where that can be written."""
    try:
        print(visible(redacted(str(text))), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError):
            silence(ERROR)


def hide_secrets_in_tracebacks() -> None:
    """From now on an exception that ends the program is shown without secrets: people send such texts to others."""
    sys.excepthook = lambda kind, error, trace: complain(
        "".join(traceback.format_exception(kind, error, trace)).rstrip()
    )
