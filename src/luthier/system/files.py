"""Files and folders that are whole or absent, and how it is known that they are.

A folder is written aside, each of its files fsynced, and renamed; the parent is fsynced. Where a folder of that name is
replaced, the old one is renamed aside first and removed last. A process can be killed between any two of these steps, and
what it leaves is the old folder or the new one, whole: under its name or aside, from where `settle` brings it back at the
next start.

The files of a run, checkpoints and results, models in the cache, exports and pages are written here (the arrays of encoded
data, which grow in the cache, are not). What lies aside has a name that begins with `.luthier-`, so nothing of anybody
else's is ever cleared away; a link is never followed, and what is no plain file is never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from luthier.errors import EnvironmentProblem, UserError
from luthier.system.faults import faults_told

HASHED_BYTES = 4 << 20
MANIFEST = "manifest.json"
OURS = ".luthier-"
"""How every name begins that luthier gives to what lies aside."""
_NEW, _OLD, _GONE = f"{OURS}new-", f"{OURS}old-", f"{OURS}gone-"
_TOKEN_BYTES = 4
_ANY_TOKEN = "?" * (2 * _TOKEN_BYTES)
_FOLDER_MODE, _FILE_MODE = 0o775, 0o664
"""Of what is made here, before the umask takes more away: nothing can be written by everybody, whatever the umask."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last for a pipe: to open one would wait


@contextlib.contextmanager
def whole_folder(
    target: Path,
    *,
    existing: Literal["replace", "keep", "refuse"],
    expected: str = "a writable folder with room",
    fix: str = "free space, or another place",
) -> Iterator[Path]:
    """A new folder that takes the name `target` when the block ends well, and vanishes when it does not.

    Its files come out as readable as the umask allows (those of safetensors are for one user only).

    Args:
        existing: what becomes of a folder that has the name by then. `keep`: another process made it, and both hold the
            same. `refuse`: an error, where there is something in it.
        expected: of the error, what there should be.
        fix: of the error, what to do.

    Raises:
        EnvironmentProblem: no room or no permission, or what the block reads cannot be read; nothing is left behind, and
            what was there is there.
    """
    with faults_told(target, expected, fix):
        make_folder(target.parent)
        settle(target.parent, target.name)
        try:
            with _new_beside(target) as new:
                yield new
                _make_last(new)
                _give_name(new, target, existing)
        finally:
            settle(target.parent, target.name)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it that are not there; none that everybody may write.

    Raises:
        OSError: it cannot be made.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(_FOLDER_MODE, exist_ok=True)


def write_folder(target: Path, fill: Callable[[Path], None], manifest: Mapping[str, Any]) -> None:
    """Writes or replaces a folder of a run: `fill` writes its files, a manifest with their sizes and hashes comes last.

    Raises:
        EnvironmentProblem: as `whole_folder`.
    """
    fix = "free space, then luthier train ... --resume"
    with whole_folder(target, existing="replace", fix=fix) as folder:
        fill(folder)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        entries = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in files.items()}
        (folder / MANIFEST).write_bytes(as_json({**manifest, "files": entries}))


def remove_folder(folder: Path) -> None:
    """Removes a folder of luthier's: it is renamed aside first, so that nobody finds half of it."""
    gone = folder.with_name(f"{_GONE}{folder.name}-{secrets.token_hex(_TOKEN_BYTES)}")
    folder.rename(gone)
    _remove(gone)


def settle(place: Path, name: str | None = None) -> None:
    """Puts right what writers of `place / name` (default: of anything in `place`) left that were killed.

    A folder that was renamed aside to be replaced gets its name back, unless the new one has it; what else lies aside is
    removed, unless its writer lives.
    """
    pattern = "*" if name is None else glob.escape(name)
    for old in place.glob(f"{_OLD}{pattern}"):
        target = place / old.name.removeprefix(_OLD)
        if target.exists():
            _remove(old)
        else:
            old.rename(target)
    for left in (*place.glob(f"{_NEW}{pattern}-{_ANY_TOKEN}"), *place.glob(f"{_GONE}{pattern}-{_ANY_TOKEN}")):
        if is_locked(left) is False:
            _remove(left)


@contextlib.contextmanager
def _new_beside(target: Path) -> Iterator[Path]:
    """An empty folder, locked as long as the block lasts: by that others see that its writer lives."""
    while True:
        new = _aside(target)
        new.mkdir(mode=_FOLDER_MODE)
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(new, os.O_RDONLY)
            _lock(handle)
            if new.exists():  # else another process came between, and took it for abandoned
                break
            os.close(handle)
    try:
        yield new
    finally:
        _remove(new)  # it has another name by now, or is not wanted
        os.close(handle)


def _aside(target: Path) -> Path:
    return target.with_name(f"{_NEW}{target.name}-{secrets.token_hex(_TOKEN_BYTES)}")


def _lock(handle: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for abandoned
        fcntl.flock(handle, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool | None:
    """Whether a living process holds the lock of a file or folder; None where nobody can tell."""
    try:
        handle = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _make_last(folder: Path) -> None:
    """On the disk, and as readable as the folder itself, which follows the umask."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode & _FILE_MODE)
        fsync(path)
    fsync(folder)


def _give_name(new: Path, target: Path, existing: str) -> None:
    if existing == "replace" and target.is_dir():
        target.rename(target.with_name(f"{_OLD}{target.name}"))
    try:
        new.rename(target)
    except OSError:
        if existing != "keep" or not target.is_dir():
            raise
    fsync(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_file(path: Path, content: bytes) -> None:
    """Writes or replaces a file in one move: there is the old one or the new one, and it lasts. Raises as `write_pieces`."""
    write_pieces(path, lambda file: file.write(content))


def write_pieces(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """The same of a file that `fill` writes piece by piece.

    Raises:
        UserError: `path` is a link, a folder or anything else but a file.
        OSError: the machine refuses it; what was there is there.
    """
    refuse_odd(path)
    settle(path.parent, path.name)
    new = _aside(path)
    try:
        with _created(new) as file:
            _lock(file.fileno())
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & _FOLDER_MODE)
            new.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it has its name by now, or what happened is told already
            new.unlink(missing_ok=True)
    fsync(path.parent)


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, _FILE_MODE), "wb")


def append_to(path: Path) -> BinaryIO:
    """The file, open for what is added at its end; made if it is not there.

    Raises:
        UserError, OSError: as `write_file`.
    """
    refuse_odd(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, _FILE_MODE), "ab")


def refuse_odd(path: Path, *, folder: bool = False) -> None:
    """What lies under a name that luthier writes must be what luthier would have put there: a plain file, or a plain folder.

    Raises:
        UserError: it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        return
    kinds = {"a symbolic link": stat.S_ISLNK, "a folder": stat.S_ISDIR, "a file": stat.S_ISREG, "a pipe": stat.S_ISFIFO}
    found = next((name for name, is_kind in kinds.items() if is_kind(mode)), "a device or a socket")
    wanted = "a folder" if folder else "a file"
    raise UserError(
        str(path), f"is {found}", f"{wanted}, or nothing: luthier does not write through it", "move it away"
    )


def require_room(place: Path, needed_bytes: int, what: str, fix: str) -> None:
    """Refuses to begin what the disk of `place` has no room for.

    Raises:
        EnvironmentProblem: with both figures.
    """
    there = next(path for path in (place, *place.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        found = f"the disk has {free / 1e6:,.1f} MB of room, {what} needs {needed_bytes / 1e6:,.1f} MB"
        raise EnvironmentProblem(str(place), found, "a folder with room", fix)


def verify(folder: Path) -> str | None:
    """What is wrong with a folder's files; None where each has the size and hash of the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            if (folder / name).stat().st_size != entry["bytes"] or sha256(folder / name) != entry["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def as_json(tree: Any) -> bytes:
    """Indented, text as it is."""
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, told: Callable[[float], None] = lambda share: None) -> str:
    """`told` hears now and then what share of the file is read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = max(1, os.fstat(file.fileno()).st_size)
        while block := file.read(HASHED_BYTES):
            digest.update(block)
            told(file.tell() / size)
    return digest.hexdigest()
