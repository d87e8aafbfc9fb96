"""Memory that is not needed any more goes back to the system, before as much is asked for again."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Collects objects that refer to each other, and asks the C library to let go of freed blocks: glibc keeps those below
    32 MB, which are the weights of a model of 1 B parameters. Elsewhere than on glibc it only collects."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
