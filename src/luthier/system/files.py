"""Files and folders that are whole or absent, and how it is known that they are.

A folder is written aside, each of its files fsynced, and renamed; the parent is fsynced. Where a folder of that name is
replaced, the old one is renamed aside first and removed last. A process can be killed between any two of these steps, and
what it leaves is the old folder or the new one, whole: under its name or aside, from where `settle` brings it back at the
next start.

Everything that luthier writes as a folder is written here: checkpoints and results, models in the cache, exports.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from safetensors import SafetensorError

from luthier.errors import EnvironmentProblem

MANIFEST = "manifest.json"
_NEW, _OLD = ".tmp-", ".old-"
_TOKEN_BYTES = 4
_ANY_TOKEN = "?" * (2 * _TOKEN_BYTES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        settle(target.parent, target.name)
        try:
            with _new_beside(target) as new:
                yield new
                _make_last(new)
                _give_name(new, target, existing)
        finally:
            settle(target.parent, target.name)
    except (OSError, SafetensorError) as error:
        raise not_written(target, error, expected, fix) from error


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
        write_json(folder / MANIFEST, {**manifest, "files": entries})


def settle(place: Path, name: str | None = None) -> None:
    """Puts right what writers of the folder `place / name` (default: of any in `place`) left that were killed.

    A folder that was renamed aside to be replaced gets its name back, unless the new one has it; what else lies aside is
    removed, unless its writer lives. Whoever leaves `name` out has `place` to himself.
    """
    pattern = "*" if name is None else glob.escape(name)
    for old in place.glob(f"{_OLD}{pattern}"):
        target = place / old.name.removeprefix(_OLD)
        if target.exists():
            _remove(old)
        else:
            old.rename(target)
    for new in place.glob(f"{_NEW}{pattern}-{_ANY_TOKEN}"):
        if _is_abandoned(new):
            _remove(new)
    if name is None:
        for file in filter(Path.is_file, place.glob(".*.tmp")):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_beside(target: Path) -> Iterator[Path]:
    """An empty folder, locked as long as the block lasts: by that others see that its writer lives."""
    while True:
        new = target.with_name(f"{_NEW}{target.name}-{secrets.token_hex(_TOKEN_BYTES)}")
        new.mkdir()
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(new, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for abandoned
                fcntl.flock(handle, fcntl.LOCK_EX)
            if new.exists():  # else another process came between, and took it for abandoned
                break
            os.close(handle)
    try:
        yield new
    finally:
        _remove(new)  # it has another name by now, or is not wanted
        os.close(handle)


def _is_abandoned(new: Path) -> bool:
    try:
        handle = os.open(new, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _make_last(folder: Path) -> None:
    """On the disk, and as readable as the folder itself, which follows the umask."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode & 0o666)
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
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes or replaces a file in one move: there is the old one or the new one, and it lasts. Raises OSError."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            new.chmod(path.stat().st_mode & 0o777)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    fsync(path.parent)


def is_leftover(name: str) -> bool:
    """Whether a file of that name is what a kill left of `write_file`."""
    return name.startswith(".") and name.endswith(".tmp")


def not_written(place: Path | str, error: Exception, expected: str, fix: str = "") -> EnvironmentProblem:
    """What is told of an OSError, or one of safetensors, while `place` was written."""
    full = isinstance(error, OSError) and error.errno in _FULL
    full = full or any(f"(os error {number})" in str(error) for number in _FULL)  # as safetensors tells it
    why = getattr(error, "strerror", None) or str(error)
    if (other := getattr(error, "filename", None)) and not str(other).startswith(str(Path(place).parent)):
        why = f"{other}: {why}"
    return EnvironmentProblem(str(place), "the disk is full" if full else f"cannot be written: {why}", expected, fix)


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


def write_json(path: Path, tree: Any) -> None:
    path.write_bytes(as_json(tree))


def is_still(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one of that name: whoever held a lock before may have taken the file away."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
