"""Files as streams of bytes and lines: unpacked on the way, in UTF-8, with a bound on a record and on what a packed file may
grow to.

The unpacking is the libraries' own. `xopen` and `fsspec` choose one of these by the name of a file as well, but bound nothing: a
bomb of some kilobytes fills memory or disk, and damage is an error that names no file. Nor does either go on from a mark in
the middle of a file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from luthier.data.readers._limits import Limits, unpacks_too_far
from luthier.data.readers._signatures import HEAD_BYTES, refuse_another_encoding, refuse_another_kind
from luthier.errors import BadRow, EnvironmentProblem, UserError

BLOCK_BYTES = 1 << 20
ENDLESS = 32
"""A line this many times as long as a row may be is no line: nobody waits for its end."""

MEASURED_BYTES = 4 << 20
"""A packed file up to this size is unpacked once before it is read: rows of a bomb are not encoded for an hour first."""

PACKED = (".gz", ".zst", ".bz2", ".xz")
RECORDS_BETWEEN_MARKS = 1024
WHITE = b" \t\r\n"
TOOLS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}

Told = Callable[[str, float], None]
"""Is told which file is read, and what share of it is."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file of lines from which reading can go on."""

    record: int
    """how many records lie before it"""
    offset_bytes: int
    line: int
    """how many lines lie before it"""


@dataclass
class File:
    """A file, and the marks that were left in it while it was read."""

    path: Path
    name: str
    """as written in the configuration: what messages name"""
    limits: Limits = field(default_factory=Limits)
    told: Told = lambda name, share: None
    marks: list[Mark] = field(default_factory=list)
    measured: bool = False
    """whether it is known that it does not unpack to too much"""

    @property
    def packed(self) -> str | None:
        """The ending of how it is packed, if it is."""
        ending = self.path.suffix.lower()
        return ending if ending in PACKED else None


class _Counted(io.FileIO):
    """The bytes of a file as they lie on the disk; says how far it is read."""

    def __init__(self, file: File) -> None:
        super().__init__(file.path)
        self._file = file
        self.size = os.fstat(self.fileno()).st_size

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._file.told(self._file.name, self.tell() / max(1, self.size))
        return count


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file; damage and bombs are errors that name it."""

    def __init__(self, stream: Any, file: File, packed_bytes: int) -> None:
        self._stream = stream
        self._file = file
        self._most = file.limits.of_unpacked(packed_bytes)
        self._packed_bytes = packed_bytes
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from None
        except MemoryError:  # of a library that is asked for a window larger than the memory
            raise self._damaged(MemoryError("it asks for more memory than there is")) from None
        except OSError as error:
            raise (self._damaged(error) if error.errno is None else unreadable(self._file.name, error)) from None
        self._count += len(data)
        if self._count > self._most:
            raise unpacks_too_far(self._file.name, self._file.limits, self._most, self._packed_bytes, self._most)
        buffer[: len(data)] = data
        return len(data)

    def _damaged(self, error: Exception) -> UserError:
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        name = self._file.name
        return UserError(
            name,
            f"damaged or cut off: {why}",
            "a whole packed file",
            f"fetch or pack it again; test it: {TOOLS[str(self._file.packed)]} -t {name}",
        )

    def close(self) -> None:
        self._stream.close()
        super().close()


def unreadable(name: str, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        name, f"cannot be read: {error.strerror or error}", "a readable file", f"ls -l {name} shows who may read it"
    )


@contextmanager
def opened(file: File) -> Iterator[io.BufferedReader[Any]]:
    """The bytes of a file, unpacked.

    Raises:
        UserError: damaged, cut off, or a bomb (while it is read).
        EnvironmentProblem: not readable.
    """
    if file.packed is not None and not file.measured:
        file.measured = True
        _measure(file)
    with _as_it_lies(file) as (stream, size):
        if file.packed is None:
            yield stream
            return
        with io.BufferedReader(_Unpacked(_unpacker(file, stream), file, size), BLOCK_BYTES) as unpacked:
            yield unpacked


@contextmanager
def _as_it_lies(file: File) -> Iterator[tuple[io.BufferedReader[Any], int]]:
    try:
        raw = _Counted(file)
    except OSError as error:
        raise unreadable(file.name, error) from None
    with io.BufferedReader(raw, BLOCK_BYTES) as stream:
        yield stream, raw.size


def _measure(file: File) -> None:
    """Raises UserError where a small packed file is damaged or a bomb."""
    with _as_it_lies(file) as (stream, size):
        if size <= MEASURED_BYTES:
            with io.BufferedReader(_Unpacked(_unpacker(file, stream), file, size), BLOCK_BYTES) as unpacked:
                while unpacked.read(BLOCK_BYTES):
                    pass


def _unpacker(file: File, stream: IO[bytes]) -> Any:
    if file.packed == ".gz":
        return gzip.GzipFile(fileobj=stream)
    if file.packed == ".bz2":
        return bz2.BZ2File(stream)
    if file.packed == ".xz":
        return lzma.LZMAFile(stream)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def skip_mark_of_order(file: File, stream: io.BufferedReader[Any], marked_up: bool = False) -> int:
    """Goes past a byte order mark, if there is one, and says how many bytes that is.

    Args:
        marked_up: whether a page of HTML is as good as any other text here.

    Raises:
        UserError: the file is in another encoding, or no text at all.
    """
    try:
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    except OSError as error:
        raise unreadable(file.name, error) from None
    refuse_another_kind(file.name, head, "a text file in UTF-8", marked_up)
    refuse_another_encoding(file.name, file.path.name, head)
    return len(stream.read(3)) if head.startswith(b"\xef\xbb\xbf") else 0


def not_utf8(file: File, line: int, error: UnicodeDecodeError) -> UserError:
    """The error of bytes that are no UTF-8, at a line."""
    what = f"byte {error.start + 1} of the line (0x{error.object[error.start]:02x}) is not UTF-8"
    fix = f"iconv -f ITS_ENCODING -t UTF-8 {file.name} > utf8_{file.path.name}"
    return UserError(f"{file.name}:{line}", what, "a text file in UTF-8", fix)


def skip_white(stream: io.BufferedReader[Any]) -> int:
    """Goes past white space, up to the beginning of the line that has something else, and says how many lines that is.

    By blocks: a small packed file can hold a thousand million empty lines.
    """
    count = 0
    while block := stream.peek(1):
        white = block[: len(block) - len(block.lstrip(WHITE))]
        white = white[: white.rfind(b"\n") + 1]
        if not white:
            break
        count += white.count(b"\n")
        stream.read(len(white))
        if len(white) < len(block):
            break
    return count


class Lines:
    """The lines of a stream with their numbers, an iterator. Only a line feed ends a line; it is part of it. A line that is too
    long is a BadRow.
    """

    def __init__(self, file: File, stream: io.BufferedReader[Any], before: int = 0) -> None:
        """`before`: how many lines lie before the first one."""
        self.file = file
        self.number = before
        """of the line that was given last"""
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[int, bytes | BadRow]]:
        return self

    def __next__(self) -> tuple[int, bytes | BadRow]:
        """Raises UserError where a line does not end within ENDLESS times what a row may have."""
        most = self.file.limits.row_bytes
        try:
            line = self._stream.readline(most + 1)
            if not line:
                raise StopIteration
            self.number += 1
            return self.number, line if len(line) <= most else self._too_long(line)
        except OSError as error:
            raise unreadable(self.file.name, error) from None

    def _too_long(self, line: bytes) -> BadRow:
        start, length = line[:1000].decode(errors="replace"), len(line)
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(BLOCK_BYTES)
            length += len(line)
            if length > ENDLESS * self.file.limits.row_bytes:
                raise _endless(self.file, self.number, length)
        return self.file.limits.row_too_large(f"{self.file.name}:{self.number}", length, start)

    def skip_blank(self) -> None:
        """Goes past the blank lines that follow."""
        try:
            self.number += skip_white(self._stream)
        except OSError as error:
            raise unreadable(self.file.name, error) from None


def _endless(file: File, line: int, length: int) -> UserError:
    found = f"a line of more than {length:,} bytes"
    fix = f"data.max_row_bytes={4 * length} if the rows are so long; is it a text with a row a line?"
    return UserError(f"{file.name}:{line}", found, f"at most {file.limits.row_bytes:,} bytes", file.limits.fix(fix))


def empty(file: File) -> UserError:
    return UserError(
        file.name, "the file is empty", "at least one row", "put rows in it, or name another file: data.train=FILE"
    )


def records_of_lines(file: File, start: int = 0, marked_up: bool = False) -> Iterator[tuple[int, bytes | BadRow]]:
    """The lines of a file that are not blank, after the first `start` of them, and their numbers.

    Marks are left in a file that is not packed, so that a later call begins near its start.

    Raises:
        UserError: another encoding, or nothing in the file.
    """
    with opened(file) as stream:
        skip_mark_of_order(file, stream, marked_up)
        record, before = 0, 0
        if near := max(
            (mark for mark in file.marks if mark.record <= start), key=lambda mark: mark.record, default=None
        ):
            stream.seek(near.offset_bytes)
            record, before = near.record, near.line
        last = file.marks[-1].record if file.marks else 0
        numbered = Lines(file, stream, before)
        for number, line in numbered:
            if isinstance(line, bytes) and line.isspace():
                numbered.skip_blank()
                continue
            if record >= start:
                yield number, line
            record += 1
            if file.packed is None and record - last >= RECORDS_BETWEEN_MARKS:
                file.marks.append(Mark(record, stream.tell(), number))
                last = record
        if record == 0:
            raise empty(file)
