"""From what a configuration names to records: files, folders, patterns, data sets of hubs.

A record that cannot be read is a BadRow in its place, so that all of them are found in one pass; a file that cannot be read
at all is an error at once. Reading streams (`readers/`), and notices a file that changes meanwhile.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from luthier.component import did_you_mean
from luthier.config import DataFile
from luthier.data import readers
from luthier.data.readers import File, Limits, Told, hub_data
from luthier.data.readers._bytes import unreadable
from luthier.errors import BadRow, UserError, excerpt
from luthier.system.files import sha256
from luthier.types import Ints, Row

Written = Callable[[str], str]
"""The line that names a path in the place of the one that is wrong, as it can be pasted."""
HUBS = {"hf:": hub_data.huggingface, "ms:": hub_data.modelscope}


@dataclass
class Source:
    """One file, or one split of a hub data set, and how it is read."""

    name: str
    """The path as written in the configuration: what messages name."""
    file: DataFile
    path: Path | None
    dataset: Any = None
    times: Ints | None = None
    """[records] int64: how often each record is taken, where not all are taken once"""
    most: int | None = None
    """so many rows, the first ones, are taken"""
    drawn_by: str = ""
    """what decides `times`, for the fingerprint"""
    note: str = ""
    """what is to be said of the choice of rows"""
    limits: Limits = field(default_factory=lambda: Limits(settable=False))
    told: Told = lambda name, share: None
    """is told how far the file is read"""
    _state: tuple[int, ...] | None = field(default=None, repr=False)
    """size and time of the file when it was first looked at"""
    _opened: File | None = field(default=None, repr=False)

    def fingerprint(self) -> str:
        """A hash of the content, and of the choice among its rows.

        Raises:
            EnvironmentProblem: the file cannot be read.
            UserError: it changes while it is read.
        """
        chosen = f"; {self.drawn_by}; {self.most}" if self.drawn_by or self.most is not None else ""
        if self.path is None:
            return f"hub:{self.dataset._fingerprint}{chosen}"
        self.check_unchanged()
        try:
            digest = sha256(self.path, lambda share: self.told(self.name, share))
        except OSError as error:
            raise unreadable(self.name, error) from None
        self.check_unchanged()
        return digest + chosen

    def look(self) -> None:
        """Reads the first record: what is no data at all is told before a long file is hashed. Raises as `rows`."""
        if self.path is not None:
            next(self.records(), None)

    @property
    def size_bytes(self) -> int:
        """Of the file; 0 where it is not known."""
        return self.path.stat().st_size if self.path else 0

    @property
    def share_read(self) -> float:
        """Of the file that was read so far, where that is known; else 0."""
        marks = self._opened.marks if self._opened else []
        return min(1.0, marks[-1].offset_bytes / max(1, self.size_bytes)) if marks else 0.0

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """The rows that are taken, in their order, after the first `start`. A record that is taken several times comes
        several times in a row.

        A later call that begins elsewhere is quick: files of lines are read from the nearest mark that was left in them,
        Parquet by row groups, data sets by index; others are read from their beginning.

        Raises:
            UserError: not readable as what its ending says, or the file changed while it was read; names file and line.
            EnvironmentProblem: not readable at all.
        """
        taken = self.records(start) if self.times is None else self._taken(start)
        yield from itertools.islice(taken, None if self.most is None else max(0, self.most - start))
        if self.path is not None:
            self.check_unchanged()

    def _taken(self, start: int) -> Iterator[Row | BadRow]:
        assert self.times is not None
        until = np.cumsum(self.times)
        record = int(np.searchsorted(until, start, side="right"))
        done = int(until[record - 1]) if record else 0
        for number, row in enumerate(self.records(record), start=record):
            times = int(self.times[number])
            yield from itertools.repeat(row, times - max(0, min(times, start - done)))
            done += times
            if done >= until[-1]:
                return

    def records(self, start: int = 0) -> Iterator[Row | BadRow]:
        """All records of the file after the first `start`, however many of them are taken. Raises as `rows`."""
        if self.path is None:
            return hub_data.rows(self.dataset, self.name, self.limits, start)
        return self._of_file(start)

    def _of_file(self, start: int) -> Iterator[Row | BadRow]:
        self.check_unchanged()
        try:
            yield from readers.records(self._file(), start)
        except UserError:
            self.check_unchanged()  # says more than what half a file looks like
            raise

    def count(self) -> int:
        """How many records there are. Raises as `rows`."""
        if self.path is None:
            return len(self.dataset)
        self.check_unchanged()
        return readers.count(self._file())

    def _file(self) -> File:
        if self._opened is None:
            assert self.path is not None
            self._opened = File(self.path, self.name, self.limits, self.told)
        return self._opened

    def check_unchanged(self) -> None:
        """Raises UserError where the file is not what it was when it was first looked at."""
        assert self.path is not None
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise UserError(
                self.name, "the file disappeared while it was read", "a file that stays", "put it back, and start again"
            ) from None
        except OSError as error:
            raise unreadable(self.name, error) from None
        state = (found.st_size, found.st_mtime_ns, found.st_ino)
        if self._state is None:
            self._state = state
        if state != self._state:
            raise UserError(
                self.name,
                f"the file changed while it was read: {self._state[0]:,} bytes, now {state[0]:,}",
                "a file that nobody writes to",
                "start again when it is complete",
            )


def is_of_hub(file: DataFile) -> bool:
    """Whether an entry names a data set of a hub, which is fetched to be looked at."""
    return file.path.startswith(tuple(HUBS))


def sources(file: DataFile, key: str, written: Written | None = None) -> list[Source]:
    """The files that one entry of `data.train` or `data.eval` names: one, those of a folder or pattern, or a hub's data set.

    Args:
        written: makes the line that names another file instead.

    Raises:
        UserError: nothing is there, or its ending is none that is read; `key` names the entry in the configuration.
    """
    for prefix, load in HUBS.items():
        if file.path.startswith(prefix):
            return [Source(file.path, file, None, load(file))]
    path, written = Path(file.path), written or f"{key}={{}}".format
    _refuse_keys_of_hubs(file, key)
    if glob.has_magic(file.path) and not path.exists():
        found = sorted(name for name in glob.glob(file.path, recursive=True) if not Path(name).is_dir())
        if not found:
            raise UserError(
                f"{key}: {file.path}", "no file matches this pattern", f"files below {Path.cwd()}", f"ls {file.path}"
            )
        return [_local(Path(name), name, file, key, written) for name in found]
    if path.is_dir():
        chosen, others = _in_folder(path, key, written)
        first, *more = [_local(item, str(item), file, key, written) for item in chosen]
        return [replace(first, note=_left_out(others)), *more]
    return [_local(path, file.path, file, key, written)]


def _refuse_keys_of_hubs(file: DataFile, key: str) -> None:
    given = {"subset": file.subset, "revision": file.revision, "data_dir": file.data_dir}
    given["split"] = None if file.split == "train" else file.split
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{key}: {file.path}",
                f"{name}: {value} of a local file",
                f"hf:org/name with {name}",
                f"leave {name} out",
            )


def _left_out(others: list[Path]) -> str:
    names = excerpt(", ".join(item.name for item in others), 60)
    return f"beside it in the folder and left out: {names}" if others else ""


def _in_folder(folder: Path, key: str, written: Written) -> tuple[list[Path], list[Path]]:
    """The data files that lie in a folder, and what else does: folders below it, files of other endings.

    Raises:
        UserError: there are none, or they differ in kind.
    """
    try:
        items = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise unreadable(str(folder), error) from None
    found = [item for item in items if readers.ending_of(item) and not item.is_dir()]
    kinds = sorted({ending for item in found if (ending := readers.ending_of(item))})
    place = f"{key}: {folder}"
    if not found:
        below = next((item for item in items if item.is_dir()), None)
        fix = f"{written(f'{folder}/**/*.jsonl')} for files further down" if below else written("FILE")
        raise UserError(place, "no data files lie in this folder", "files ending with one of " + readers.ENDINGS, fix)
    if len(kinds) > 1:
        first = [next(item.name for item in found if readers.ending_of(item) == kind) for kind in kinds]
        wrong = f"files of several kinds lie in this folder: {', '.join(first[:4])}"
        raise UserError(place, wrong, "files of one kind", written(f"{folder}/*{kinds[0]}"))
    return found, [item for item in items if item not in found]


def _local(path: Path, name: str, file: DataFile, key: str, written: Written) -> Source:
    place = f"{key}: {name}"
    if path.is_symlink() and not path.exists():
        raise UserError(
            place, "this link leads nowhere, or in a circle", "a file", f"ls -l {name} shows where it leads"
        )
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/")) and not path.suffix:
            expected = "a file; a data set of the hub starts with hf:"
            raise UserError(place, "there is no such file", expected, written(f"hf:{name}"))
        near = did_you_mean(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        found = f"there is no such file (looked in {path.absolute().parent})"
        raise UserError(place, found, "a file", near or written(f"PATH/{path.name}"))
    if not path.is_file():
        raise UserError(place, "this is no ordinary file", "a file", f"copy what it gives to a file: {written('FILE')}")
    if line := readers.unpacking(PurePath(name)):
        raise UserError(place, "this is an archive", "the files in it", f"{line}, then name them")
    if path.suffix.lower() in readers.PICTURES:
        raise UserError(place, "this is a picture, not data", "one of " + readers.ENDINGS, written("FILE"))
    if readers.ending_of(path) is None:
        ending = "".join(path.suffixes[-2:]) or "(none)"
        fix = f"name it for what it holds: mv {name} {path.stem}.jsonl"
        raise UserError(place, f"the ending {ending} is not known", "one of " + readers.ENDINGS, fix)
    return Source(name, file, path)
