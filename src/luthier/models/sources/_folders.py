"""Small things about files that every source needs: hashes, folders that appear whole, and what may not be loaded."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import EnvironmentProblem

Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    """Progress of what takes seconds; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` in one rename when the block ends well, and vanishes when it does not.

    Where another process made `target` in the meantime, that one is kept: both hold the same.

    Raises:
        EnvironmentProblem: the disk is full or may not be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target.parent, error) from None
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)) or error.errno in (28, 122):
            raise _cannot_write(target.parent, error) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(folder: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        str(folder),
        f"cannot be written: {error.strerror or error}",
        "a cache folder with space",
        "LUTHIER_CACHE=/path/with/space luthier ...",
    )
