"""Files and folders that are whole or absent, and how it is known that they are.

A folder is written aside, each file fsynced, a manifest (sha256 and size of each file) last, then renamed, and the parent
fsynced. So at every moment there is the old state or the new one, never a mixture.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from luthier.errors import EnvironmentProblem

MANIFEST = "manifest.json"


def write_folder(target: Path, fill: Callable[[Path], None], manifest: Mapping[str, Any]) -> None:
    """Makes the folder `target` whole or not at all: `fill` writes its files, a manifest with their hashes comes last.

    Raises:
        EnvironmentProblem: no space or no permission; nothing of the folder is left behind.
    """
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        files = {
            path.relative_to(temporary).as_posix(): path for path in sorted(temporary.rglob("*")) if path.is_file()
        }
        entries = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in files.items()}
        write_json(temporary / MANIFEST, {**manifest, "files": entries})
        as_readable_as(temporary / MANIFEST, files.values())
        for path in [*files.values(), temporary / MANIFEST, temporary]:
            fsync(path)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        fsync(target.parent)
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise EnvironmentProblem(
            str(target),
            "the disk is full" if full else f"could not be written: {error}",
            "a writable folder with room",
            "free space, then luthier train ... --resume",
        ) from error
    finally:  # also after ctrl-c; a kill leaves it, and the next resume takes it away
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where each has the size and hash of the manifest."""
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


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def as_readable_as(model: Path, files: Iterable[Path]) -> None:
    """Gives `files` the mode of a file that Python wrote: it follows the umask, safetensors' own are for one user only."""
    for file in files:
        file.chmod(model.stat().st_mode & 0o777)


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
