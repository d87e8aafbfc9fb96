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
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from luthier.errors import BadRow, EnvironmentProblem, UserError

BLOCK_BYTES = 1 << 20
MOST_RECORD_BYTES = 64 << 20
"""A longer record is no example of anything: a model's context is a thousand times shorter."""

PACKED = (".gz", ".zst", ".bz2", ".xz")
FREE_BYTES = 256 << 20
MOST_TIMES = 250
"""A packed file may unpack to MOST_TIMES its size, or to FREE_BYTES if that is more: text packs to a tenth, a bomb to less
than a thousandth."""

RECORDS_BETWEEN_MARKS = 1024

SIGNATURES = {
    b"\x1f\x8b": "packed by gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd: name it .zst",
    b"BZh": "packed by bzip2: name it .bz2",
    b"\xfd7zXZ": "packed by xz: name it .xz",
    b"PK\x03\x04": "a zip archive (or an office document)",
    b"PAR1": "Parquet: name it .parquet",
    b"ARROW1": "Arrow: name it .arrow",
}
"""First bytes of files that are no text, and what they are."""


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
    marks: list[Mark] = field(default_factory=list)

    @property
    def packed(self) -> str | None:
        """The ending of how it is packed, if it is."""
        ending = self.path.suffix.lower()
        return ending if ending in PACKED else None


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file; damage and bombs are errors that name it."""

    def __init__(self, stream: Any, name: str, packed_bytes: int) -> None:
        self._stream = stream
        self._name = name
        self._most = max(FREE_BYTES, packed_bytes * MOST_TIMES)
        self._packed_bytes = packed_bytes
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from None
        except OSError as error:
            raise (self._damaged(error) if error.errno is None else unreadable(self._name, error)) from None
        self._count += len(data)
        if self._count > self._most:
            raise UserError(
                self._name,
                f"it unpacks to more than {self._most:,} bytes from {self._packed_bytes:,}",
                f"a packed text, at most {MOST_TIMES} times larger",
                "unpack it yourself if you trust it, and name the unpacked file",
            )
        buffer[: len(data)] = data
        return len(data)

    def _damaged(self, error: Exception) -> UserError:
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return UserError(
            self._name,
            f"damaged or cut off: {why}",
            "a whole packed file",
            f"fetch or pack it again; test it: {self._test}",
        )

    @property
    def _test(self) -> str:
        tool = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}[Path(self._name).suffix.lower()]
        return f"{tool} -t {self._name}"

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
    try:
        stream = io.BufferedReader(io.FileIO(file.path), BLOCK_BYTES)
        size = file.path.stat().st_size
    except OSError as error:
        raise unreadable(file.name, error) from None
    with stream:
        if file.packed is None:
            yield stream
            return
        with io.BufferedReader(_Unpacked(_unpacker(file, stream), file.name, size), BLOCK_BYTES) as unpacked:
            yield unpacked


def _unpacker(file: File, stream: IO[bytes]) -> Any:
    if file.packed == ".gz":
        return gzip.GzipFile(fileobj=stream)
    if file.packed == ".bz2":
        return bz2.BZ2File(stream)
    if file.packed == ".xz":
        return lzma.LZMAFile(stream)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def skip_mark_of_order(file: File, stream: io.BufferedReader[Any]) -> int:
    """Goes past a byte order mark, if there is one, and says how many bytes that is.

    Raises:
        UserError: the file is in another encoding, or no text at all.
    """
    try:
        first = stream.peek(8)[:8]
    except OSError as error:
        raise unreadable(file.name, error) from None
    for signature, what in SIGNATURES.items():
        if first.startswith(signature):
            raise UserError(file.name, f"this is no text but {what}", "a text file in UTF-8", "rename or unpack it")
    if first[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in first[:2]:
        encoding = "UTF-16" if first[:1] in (b"\xff", b"\xfe") else "UTF-16BE" if first[:1] == b"\0" else "UTF-16LE"
        raise UserError(
            file.name,
            f"the file is {encoding}",
            "UTF-8",
            f"iconv -f {encoding} -t UTF-8 {file.name} > utf8_{file.path.name}",
        )
    return len(stream.read(3)) if first.startswith(b"\xef\xbb\xbf") else 0


def not_utf8(file: File, line: int, error: UnicodeDecodeError) -> UserError:
    """The error of bytes that are no UTF-8, at a line."""
    what = f"byte {error.start + 1} of the line (0x{error.object[error.start]:02x}) is not UTF-8"
    fix = f"iconv -f ITS_ENCODING -t UTF-8 {file.name} > utf8_{file.path.name}"
    return UserError(f"{file.name}:{line}", what, "a text file in UTF-8", fix)


def too_long(place: str, start: str) -> BadRow:
    most = f"{MOST_RECORD_BYTES:,} bytes"
    return BadRow(place, "", f"a record of more than {most}", f"at most {most} a record", raw=start)


def lines(file: File, stream: io.BufferedReader[Any], before: int = 0) -> Iterator[tuple[int, bytes | BadRow]]:
    """The lines of a stream and their numbers, `before` of which lie before it. Only a line feed ends a line; it is part
    of it. A line that is too long is a BadRow.
    """
    number = before
    most = MOST_RECORD_BYTES
    try:
        while line := stream.readline(most + 1):
            number += 1
            if len(line) <= most:
                yield number, line
                continue
            start = line[:1000].decode(errors="replace")
            while line and not line.endswith(b"\n"):
                line = stream.readline(BLOCK_BYTES)
            yield number, too_long(f"{file.name}:{number}", start)
    except OSError as error:
        raise unreadable(file.name, error) from None


def empty(file: File) -> UserError:
    return UserError(
        file.name, "the file is empty", "at least one row", "put rows in it, or name another file: data.train=FILE"
    )


def records_of_lines(file: File, start: int = 0) -> Iterator[tuple[int, bytes | BadRow]]:
    """The lines of a file that are not blank, after the first `start` of them, and their numbers.

    Marks are left in a file that is not packed, so that a later call begins near its start.

    Raises:
        UserError: another encoding, or nothing in the file.
    """
    with opened(file) as stream:
        offset = skip_mark_of_order(file, stream)
        record, before = 0, 0
        if near := max(
            (mark for mark in file.marks if mark.record <= start), key=lambda mark: mark.record, default=None
        ):
            stream.seek(near.offset_bytes)
            record, before, offset = near.record, near.line, near.offset_bytes
        last = file.marks[-1].record if file.marks else 0
        for number, line in lines(file, stream, before):
            if isinstance(line, bytes):
                length, blank = len(line), line.isspace()
            else:
                length, blank = 0, False
            if not blank:
                if record >= start:
                    yield number, line
                record += 1
            if file.packed is None:
                offset = offset + length if isinstance(line, bytes) else stream.tell()
                if record - last >= RECORDS_BETWEEN_MARKS:
                    file.marks.append(Mark(record, offset, number))
                    last = record
        if record == 0:
            raise empty(file)
