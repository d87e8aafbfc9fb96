"""What a source says while it works."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    """Progress of what takes seconds; stdout is for results."""
    print(text, file=sys.stderr, flush=True)
