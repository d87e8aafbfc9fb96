"""A lock that a process holds as long as it lives: an empty file, taken away when it is let go of."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.errors import UserError
from luthier.system.files import refuse_odd

_handles = set[int]()
"""Of the locks that this process holds."""


def _let_go_in_child() -> None:
    """A child that outlives its parent (one that encodes, until it notices) would hold what the parent held."""
    while _handles:
        os.close(_handles.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


class Lock:
    """A lock that is held."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def is_in_place(self) -> bool:
        """Whether the file is still there under its name: where somebody removes or moves its folder, it is not."""
        try:
            return os.path.samestat(os.fstat(self._handle), self.path.lstat())
        except OSError:
            return False


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[Lock]:
    """Holds the lock of that name, for others too who come to the same file by another path or machine.

    Args:
        wait: until who holds it lets go.

    Raises:
        BlockingIOError: another process holds it.
        UserError: there is something that is no lock.
        OSError: the file cannot be made, or the file system has no locks.
    """
    handle, lock = -1, None
    try:
        while lock is None:
            handle = _opened(path)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if Lock(path, handle).is_in_place():  # else who held it has taken the file away
                lock = Lock(path, handle)
            else:
                os.close(handle)
                handle = -1
        _handles.add(handle)
        try:
            yield lock
        finally:
            _handles.discard(handle)
            if lock.is_in_place():
                with suppress(OSError):  # an empty file that stays does no harm
                    path.unlink()
    finally:
        if handle >= 0:
            os.close(handle)


def _opened(path: Path) -> int:
    refuse_odd(path)
    # Not truncated: were it a file of somebody else's, it would be empty now.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o664)
    if os.fstat(handle).st_size:
        os.close(handle)
        raise UserError(str(path), "is no lock of luthier's: there is something in it", "no file", "move it away")
    return handle
