"""Memory that is not needed any more goes back to the system, before as much is asked for again; and whether any is left."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys

ROOM = 256 << 20
"""Of address space: with less what libraries say of their failures is not to be believed."""


def is_short_of_memory() -> bool:
    """Whether ROOM more is not to be had; nothing of it is used."""
    try:
        mmap.mmap(-1, ROOM).close()
    except (OSError, MemoryError):
        return True
    return False


def give_back_memory() -> None:
    """Collects objects that refer to each other, and asks the C library to let go of freed blocks: glibc keeps those below
    32 MB, which are the weights of a model of 1 B parameters. Elsewhere than on glibc it only collects."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
