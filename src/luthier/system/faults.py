"""What the machine refuses (a disk, a quota, the memory), in words: apart from what is a bug of ours."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from luthier.errors import EnvironmentProblem, LuthierError

NO_MEMORY = "there is not enough memory"
WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EIO: "the disk reports an error",
    errno.EROFS: "it may only be read",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EMFILE: "too many files are open (`ulimit -n` says how many may be)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ESTALE: "the network file system has lost it",
    errno.EFBIG: "the file is larger than may be (`ulimit -f`, or the file system)",
    errno.ENOENT: "it is not there (any more)",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.ELOOP: "it is a symbolic link, which is not followed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOMEM: NO_MEMORY,
}
"""errno -> why"""

FULL = (errno.ENOSPC, errno.EDQUOT)
OF_PATHS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR)
"""Where something is read: it is the input that is not there."""

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust end the text of an error of the system."""
_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Input/output error": errno.EIO,
    "Cannot allocate memory": errno.ENOMEM,
    "can't allocate memory": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "bad_alloc": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "can't start new thread": errno.ENOMEM,
}
"""What libraries in C++ say of one; and Python, of memory."""


def fault(error: BaseException) -> str | None:
    """Why, where `error` is a fault of the machine; None where it is anything else."""
    if isinstance(error, LuthierError):
        return None
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return WORDS.get(error.errno) or error.strerror or os.strerror(error.errno)
    text = str(error)
    found = _NUMBER.search(text)
    number = int(found[1]) if found else next((at for words, at in _TEXTS.items() if words in text), None)
    return None if number is None else WORDS.get(number, os.strerror(number))


def raise_fault(place: Path | str, error: Exception) -> None:
    """Where a library has failed with what it was given: whether it was the machine. With too little memory the library's words may be
    cut off, so memory is looked at too.

    Raises:
        EnvironmentProblem: it was.
    """
    from luthier.system.memory import is_short_of_memory

    why = None if getattr(error, "errno", None) in OF_PATHS else fault(error)
    if why is None and isinstance(error, RuntimeError) and is_short_of_memory():
        why = NO_MEMORY
    if why is not None:
        found = f"cannot be read: {why}"
        raise EnvironmentProblem(
            str(place), found, "a machine that lets it be read", "mend it, then the same command"
        ) from error


@contextmanager
def damage_told(place: Path | str, tell: Callable[[Exception], LuthierError]) -> Iterator[None]:
    """Around a library that reads `place`, which may be damaged: whatever it raises is a fault of the machine, or what `tell` makes of
    it. What is not installed is neither.

    Libraries in Rust raise a bare Exception, and where they have not thought of something an exception of their own that is none.
    """
    try:
        yield
    except (LuthierError, ImportError):
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise tell(RuntimeError(str(error))) from None
        if not isinstance(error, Exception):
            raise
        raise_fault(place, error)
        raise tell(error) from error


@contextmanager
def faults(tell: Callable[[Exception, str], EnvironmentProblem]) -> Iterator[None]:
    """Around work on files: a fault of the machine becomes what `tell` makes of it and its reason; anything else goes on.

    Libraries in Rust raise a bare Exception for one, so every exception is looked at.
    """
    try:
        yield
    except Exception as error:
        why = fault(error)
        if why is None:
            raise
        raise tell(error, why) from error


def faults_told(place: Path | str, expected: str, fix: str = "") -> AbstractContextManager[None]:
    """Around what writes `place`.

    Raises:
        EnvironmentProblem: in the place of a fault of the machine.
    """
    return faults(lambda error, why: not_written(place, error, why, expected, fix))


def not_written(place: Path | str, error: Exception, why: str, expected: str, fix: str = "") -> EnvironmentProblem:
    """What a person is told where `place` was to be written."""
    other = getattr(error, "filename", None)
    if other and not str(other).startswith(str(Path(place).parent)):
        why = f"{other}: {why}"
    return EnvironmentProblem(
        str(place), why if why == WORDS[errno.ENOSPC] else f"cannot be written: {why}", expected, fix
    )
