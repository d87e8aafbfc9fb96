"""What was fetched from a hub, and that it is what the hub said: a partial or damaged file is found before it is
used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import EnvironmentProblem
from luthier.system.files import as_json, sha256, write_file
from luthier.system.paths import cache_dir, cache_written

Stamp = list[int]
"""size and time of change of a file when it was last verified"""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it."""

    name: str
    size: int | None
    sha256: str | None
    """of a file in large-file storage"""
    git_hash: str | None
    """of any other file: sha1 of `blob SIZE`, a zero byte, and the content"""


@dataclass
class Record:
    """The files of one commit, and which of them were found to be right."""

    name: str
    commit: str
    folder: Path
    files: list[RemoteFile]
    code: bool
    """whether Python files were fetched"""
    stamps: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, commit: str) -> Record | None:
        """The record of an earlier fetch; None where there is none that can be read."""
        tree = _read(_folder(name) / f"{commit}.json")
        try:
            return cls(
                name,
                commit,
                Path(tree["folder"]),
                [RemoteFile(**item) for item in tree["files"]],
                tree["code"],
                tree["stamps"],
            )
        except (KeyError, TypeError):
            return None

    def save(self) -> None:
        tree = {
            "folder": str(self.folder),
            "files": [asdict(file) for file in self.files],
            "code": self.code,
            "stamps": self.stamps,
        }
        _write(_folder(self.name) / f"{self.commit}.json", tree)

    def is_intact(self, code: bool) -> bool:
        """Whether every file is there, unchanged since it was verified."""
        if code and not self.code:
            return False
        return all(self.stamps.get(file.name) == _stamp(self.folder / file.name) for file in self.files)

    def verify(self) -> None:
        """Checks size and hash of every file that was not verified before, or has changed since. Removes what is wrong.

        Raises:
            EnvironmentProblem: a file is missing or is not what the hub said.
        """
        for file in self.files:
            path = self.folder / file.name
            stamp = _stamp(path)
            if stamp is not None and self.stamps.get(file.name) == stamp:
                continue
            if wrong := _wrong(path, file):
                path.resolve().unlink(missing_ok=True)  # the blob, which a link in the folder points to
                path.unlink(missing_ok=True)
                raise EnvironmentProblem(
                    f"hf:{self.name}: {file.name}",
                    f"{wrong}; the damaged file was removed",
                    "the file that the hub describes",
                    f"luthier download hf:{self.name}; if it comes again, a mirror or proxy is at fault (HF_ENDPOINT)",
                )
            self.stamps[file.name] = _stamp(path) or []


def _wrong(path: Path, file: RemoteFile) -> str:
    """What is wrong with a file, or nothing."""
    if not path.is_file():
        return "the file is missing"
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.sha256 is not None:
        found, expected = sha256(path), file.sha256
    elif file.git_hash is not None:
        found, expected = (
            hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False).hexdigest(),
            file.git_hash,
        )
    else:
        return ""
    return f"wrong hash: {found} instead of {expected}" if found != expected else ""


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def commit_of_ref(name: str, revision: str) -> str | None:
    """The commit that a branch or tag named when it was last asked for."""
    commit = _read(_folder(name) / "refs.json").get(revision)
    return commit if isinstance(commit, str) else None


def remember_ref(name: str, revision: str, commit: str) -> None:
    refs = _read(_folder(name) / "refs.json")
    if refs.get(revision) != commit:
        _write(_folder(name) / "refs.json", {**refs, revision: commit})


def _folder(name: str) -> Path:
    return cache_dir() / "hub" / name.replace("/", "--")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent or damaged, for all of this can be fetched again."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _write(file: Path, tree: dict[str, Any]) -> None:
    with cache_written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, as_json(tree))
