"""Encoded data on disk, by content: found again where nothing that matters has changed, and gone on with where an
earlier process was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.dataset.ledger import Ledger
from luthier.data.dataset.samples import DamagedCache, Samples, SampleWriter
from luthier.data.dataset.workers import PURPOSES, Chunk, Refused
from luthier.errors import UserError
from luthier.system.files import OURS
from luthier.system.locks import held
from luthier.system.paths import cache_dir, cache_written
from luthier.system.streams import complain

META, REJECTED, PROGRESS = "meta.json", "rejected.jsonl", "progress.json"
NOTED_EVERY_S = 5.0
UNUSED_DAYS = 30
SHOWN_REFUSED = 20
DIGITS = 32
OUR_NAMES = re.compile(
    rf"\.?[0-9a-f]{{{DIGITS}}}(\.part|\.lock|\.json)?|{re.escape(OURS)}new-[0-9a-f]{{{DIGITS}}}\.json-[0-9a-f]+"
)
"""Of what lies in the folders of the cache that are tidied."""


@dataclass
class Account:
    """What is known of the rows that were encoded so far, beside their ids."""

    part: int = 0
    """index of the file that is being read"""
    rows: int = 0
    """records of that file that are done"""
    ledger: Ledger = field(default_factory=Ledger)
    by_part: list[dict[str, int]] = field(default_factory=list)
    """for each file: purpose -> examples"""
    refused: list[Refused] = field(default_factory=list)
    """the first of the rows that stop the run"""
    refused_rows: int = 0
    refused_long: int = 0
    systems: list[str] = field(default_factory=list)
    """the system texts of the conversations that are trained; two are as good as many"""

    def add(self, chunk: Chunk) -> None:
        """Adds the rows that follow."""
        self.rows += chunk.ledger.rows_in
        self.ledger.add(chunk.ledger)
        self.refused += chunk.refused[: SHOWN_REFUSED - len(self.refused)]
        self.refused_rows += len(chunk.refused)
        self.refused_long += sum(one.long for one in chunk.refused)
        self.systems = sorted({*self.systems, *chunk.systems})[:2]
        for purpose in PURPOSES:
            self.by_part[-1][purpose] += chunk.sets[purpose].examples

    def begin_part(self) -> None:
        self.by_part.append(dict.fromkeys(PURPOSES, 0))

    def end_part(self, source: dict[str, Any]) -> None:
        """The file is done; `source` is what the ledger says of it."""
        self.ledger.sources.append(source)
        self.part, self.rows = self.part + 1, 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Account:
        ledger = Ledger(**values.pop("ledger"))
        refused = [Refused(**one) for one in values.pop("refused")]
        return cls(ledger=ledger, refused=refused, **values)


class Store:
    """The folder that a data set is encoded into.

    Every few seconds the state is noted, so that a process that comes after a killed one goes on from there. Use as a
    context: what was begun is kept where the work is interrupted, and removed where the data are refused.

    Raises (all that writes):
        EnvironmentProblem: no room, or no permission.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with cache_written(folder):
            self._begin(folder)
        self._last_noted = time.monotonic()
        self._can_be_noted = True
        """between two chunks: within one, some arrays have it and others have not"""

    def _begin(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        noted = _json(folder / PROGRESS) or {}
        try:
            self.writers = {purpose: SampleWriter(folder / purpose, noted.get(purpose)) for purpose in PURPOSES}
            self.account = Account.from_dict(noted["account"]) if noted else Account()
        except (DamagedCache, KeyError, TypeError):
            shutil.rmtree(folder)
            folder.mkdir()
            noted, self.account = {}, Account()
            self.writers = {purpose: SampleWriter(folder / purpose) for purpose in PURPOSES}
        self._rejected = (folder / REJECTED).open("ab")
        self._rejected.truncate(noted.get("rejected", 0))

    def add(self, chunk: Chunk) -> None:
        """Writes what became of the rows that follow."""
        with cache_written(self.folder):
            self._can_be_noted = False
            self._append(chunk)
            self._can_be_noted = True
            if time.monotonic() - self._last_noted >= NOTED_EVERY_S:
                self._note()

    def _append(self, chunk: Chunk) -> None:
        for purpose, encoded in chunk.sets.items():
            if len(encoded):
                self.writers[purpose].append(encoded)
        for row in chunk.rejected:
            line = json.dumps(row, ensure_ascii=True, default=str) + "\n"
            self._rejected.write(line.encode())
        self.account.add(chunk)

    def _note(self) -> None:
        """Makes what was written so far last."""
        for writer in self.writers.values():
            writer.sync()
        self._rejected.flush()
        os.fsync(self._rejected.fileno())
        state: dict[str, Any] = {purpose: writer.counts for purpose, writer in self.writers.items()}
        state |= {"account": asdict(self.account), "rejected": self._rejected.tell()}
        temporary = self.folder / f"{PROGRESS}.tmp"
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(self.folder / PROGRESS)
        self._last_noted = time.monotonic()

    def complete(self) -> dict[str, Samples]:
        """Completes the files and opens them."""
        self._can_be_noted = False
        with cache_written(self.folder):
            for writer in self.writers.values():
                writer.close()
            self._rejected.close()
        return {purpose: Samples(self.folder / purpose) for purpose, writer in self.writers.items() if len(writer)}

    def finish(self, meta: dict[str, Any], target: Path) -> None:
        """Moves the completed files to `target` by one rename."""
        sums = {purpose: Samples(self.folder / purpose).checksum for purpose, w in self.writers.items() if len(w)}
        with cache_written(self.folder):
            (self.folder / META).write_text(json.dumps({**meta, "checksums": sums}, default=str), encoding="utf-8")
            (self.folder / PROGRESS).unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)  # what is there was found damaged
            self.folder.replace(target)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            return
        refused = issubclass(kind, UserError)
        if not refused and self._can_be_noted:
            with suppress(OSError):  # the disk is full: what was noted before is gone on from
                self._note()
        for writer in self.writers.values():
            writer.abandon()
        with suppress(OSError):
            self._rejected.close()
        if refused:
            shutil.rmtree(self.folder)


@dataclass
class Found:
    """A data set that was encoded before."""

    meta: dict[str, Any]
    sets: dict[str, Samples]
    rejected: list[dict[str, Any]]


def find(folder: Path) -> Found | None:
    """What lies in a finished folder; None where there is nothing, or a byte of it is not what was written."""
    meta = _json(folder / META)
    if meta is None:
        return None
    try:
        sets = {purpose: Samples(folder / purpose) for purpose in meta["checksums"]}
        lines = (folder / REJECTED).read_text(encoding="utf-8").splitlines()
        rejected = [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError, KeyError):  # DamagedCache is a ValueError
        return None
    if any(samples.checksum != meta["checksums"][purpose] for purpose, samples in sets.items()):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return Found(meta, sets, rejected)


def folder_of(parts: dict[str, Any]) -> Path:
    """Where the data set lies that is decided by `parts`."""
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
    return cache_dir() / "encoded" / name


def unfinished(folder: Path) -> Path:
    """Where a data set is encoded that will lie in `folder`."""
    return folder.with_name(f".{folder.name}.part")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Of several processes that would encode the same data one does; the others wait for it.

    Raises:
        EnvironmentProblem: the lock cannot be written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with cache_written(path):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        try:
            lock.enter_context(held(path, wait=False))
        except BlockingIOError:
            complain("another process encodes the same data: waiting for it")
            lock.enter_context(held(path, wait=True))
    with lock:
        yield


def remove_unused(keep: Path) -> None:
    """Deletes what lies beside `keep` and was not read for UNUSED_DAYS days: encoded data, finished reports, and what killed
    processes left. It goes by the names that luthier gives, for the folder may be anybody's.
    """
    oldest = time.time() - UNUSED_DAYS * 86_400
    for path in keep.parent.iterdir():
        with suppress(FileNotFoundError):  # another process removes it, or has let go of its lock
            if path == keep or not OUR_NAMES.fullmatch(path.name) or path.lstat().st_mtime >= oldest:
                continue
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif path.name.startswith(".") or (path / META).is_file():
                shutil.rmtree(path, ignore_errors=True)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
