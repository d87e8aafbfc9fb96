"""Rows of data files: JSON, JSONL, CSV, Parquet, and data sets of the hub.

A record that cannot be read is a `BadRow` in the stream of rows, so that one pass finds all of them; a file that cannot
be read at all is an error at once.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.component import did_you_mean
from luthier.config import DataFile
from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.formats._shared import BadRow
from luthier.types import Row

ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
HUB = "hf:"
MARKS_OF_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
PARQUET_BATCH_ROWS = 1024


@dataclass
class Source:
    """One file, or one split of a hub data set, and how it is read."""

    name: str
    """The path as written in the configuration: what messages name."""
    file: DataFile
    path: Path | None
    dataset: Any = None

    def fingerprint(self) -> str:
        """A hash of the content."""
        if self.path is None:
            return f"hub:{self.dataset._fingerprint}"
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(self.name, error) from None

    @property
    def size_bytes(self) -> int:
        """Of the file; 0 where it is not known."""
        return self.path.stat().st_size if self.path else 0

    @property
    def share_read(self) -> float:
        """Of the file that was read by the rows given out last."""
        return 1.0

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """All records in their order, from the one after the first `start` on.

        Raises:
            UserError: not readable as what its ending says; names file and line.
        """
        return itertools.islice(self._rows(), start, None)

    def _rows(self) -> Iterator[Row | BadRow]:
        if self.path is None:
            return (Row(values, self.name, number) for number, values in enumerate(self.dataset, start=1))
        if self.path.suffix == ".parquet":
            return parquet_rows(self.path, self.name)
        text = read_text(self.path, self.name)
        if self.path.suffix in (".csv", ".tsv"):
            return csv_rows(text, self.name, "\t" if self.path.suffix == ".tsv" else ",")
        if text.lstrip().startswith("["):
            return json_array_rows(text, self.name)
        if self.path.suffix == ".json" and _is_one_object(text):
            return json_array_rows(text, self.name)
        return jsonl_rows(text, self.name)


def sources(file: DataFile, key: str) -> list[Source]:
    """The files that one entry of `data.train` or `data.eval` names: one, those of a pattern, or a hub data set.

    Raises:
        UserError: nothing is there, or its ending is none that is read; `key` names the entry in the configuration.
    """
    if file.path.startswith(HUB):
        return [Source(file.path, file, None, hub_dataset(file))]
    path = Path(file.path)
    if glob.has_magic(file.path) and not path.exists():
        found = sorted(glob.glob(file.path, recursive=True))
        if not found:
            raise UserError(f"{key}: {file.path}", "no file matches this pattern", f"files below {Path.cwd()}")
        return [_local(Path(name), name, file, key) for name in found]
    return [_local(path, file.path, file, key)]


def _local(path: Path, name: str, file: DataFile, key: str) -> Source:
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/")) and not path.suffix:
            raise UserError(
                f"{key}: {name}",
                "there is no such file",
                "a file; a data set of the hub starts with hf:",
                f"{key}=hf:{name}",
            )
        near = did_you_mean(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        found = f"there is no such file (looked in {path.absolute().parent})"
        raise UserError(f"{key}: {name}", found, "a file", near or f"{key}=PATH/{path.name}")
    if path.is_dir():
        raise UserError(
            f"{key}: {name}", "this is a folder", "a file, or a pattern of files", f"{key}={name.rstrip('/')}/*.jsonl"
        )
    if not path.is_file():
        raise UserError(
            f"{key}: {name}", "this is no ordinary file", "a file", f"copy what it gives to a file: {key}=FILE"
        )
    if path.suffix not in ENDINGS:
        raise UserError(
            f"{key}: {name}", f"the ending {path.suffix or '(none)'} is not known", "one of " + " ".join(ENDINGS)
        )
    return Source(name, file, path)


def unreadable(name: str, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(name, f"cannot be read: {error.strerror or error}", "a readable file")


def read_text(path: Path, name: str) -> str:
    """The text of a UTF-8 file, without a byte order mark; line ends stay as they are.

    Raises:
        UserError: another encoding, with the line; or nothing in the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(name, error) from None
    if not data.strip():
        raise UserError(
            name, "the file is empty", "at least one row", "put rows in it, or name another file: data.train=FILE"
        )
    if encoding := MARKS_OF_OTHER_ENCODINGS.get(data[:2]):
        raise UserError(
            name, f"the file is {encoding}", "UTF-8", f"iconv -f {encoding} -t UTF-8 {name} > utf8_{path.name}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{line}",
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8",
            "a text file in UTF-8",
            f"iconv -f ITS_ENCODING -t UTF-8 {name} > utf8_{path.name}",
        ) from None


@dataclass
class StrictJSON:
    """JSON without what Python's parser lets pass: duplicate keys, NaN and Infinity. They are noted in `faults`."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    """(what was found, what was expected) of the value read last"""

    def __post_init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._map, parse_constant=self._constant)

    def value_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends. Raises ValueError (of which JSONDecodeError has a
        position).
        """
        self.faults.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def _map(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self.faults.append((f"the key {excerpt(twice)} stands in it twice", "each key once"))
        return out

    def _constant(self, name: str) -> float:
        self.faults.append((f"the value {name}", "JSON, which has no such value"))
        return 0.0


def _reason(error: ValueError) -> str:
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]


def _row(value: Any, name: str, number: int, line: int | None, parser: StrictJSON, raw: str) -> Row | BadRow:
    place = Row({}, name, number, line).place
    if parser.faults:
        found, expected = parser.faults[0]
        return BadRow(place, "", found, expected, raw=raw)
    if not isinstance(value, dict):
        return BadRow(place, "", excerpt(value), 'a map in braces: {"key": "value"}', raw=raw)
    return Row(value, name, number, line)


def jsonl_rows(text: str, name: str) -> Iterator[Row | BadRow]:
    """One record a line. Lines end at a line feed only: other line separators may stand inside JSON texts. Blank lines
    are no records.
    """
    parser = StrictJSON()
    for number, line in enumerate(text.split("\n"), start=1):
        if not (line := line.strip(" \t\r")):
            continue
        try:
            value, end = parser.value_at(line, 0)
            if end != len(line):
                raise json.JSONDecodeError("Extra data", line, end)
        except ValueError as error:
            yield BadRow(f"{name}:{number}", "", f"broken JSON: {_reason(error)}", "one JSON map on one line", raw=line)
            continue
        yield _row(value, name, number, None, parser, line)


def _is_one_object(text: str) -> bool:
    """Whether a file is a single JSON map, over as many lines as it likes, and nothing after it."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = StrictJSON().value_at(text, start)
    except ValueError:
        return "\n" in text.strip() and text.lstrip()[:2].rstrip() == "{"
    return not text[end:].strip()


def json_array_rows(text: str, name: str) -> Iterator[Row | BadRow]:
    """The records of one JSON array, or the one record of a file that is a map.

    Raises:
        UserError: the array is broken, with the line: what follows cannot be told.
    """
    parser, number, line, seen = StrictJSON(), 0, 1, 0
    in_array = text.lstrip().startswith("[")
    position = _skip(text, 0)
    position = _skip(text, position + 1) if in_array else position

    def broken(reason: str, at: int) -> UserError:
        return UserError(
            f"{name}:{text.count(chr(10), 0, at) + 1}", f"broken JSON: {reason}", "a JSON array of maps: [{...}, {...}]"
        )

    while position < len(text) and text[position] != "]":
        number += 1
        line, seen = line + text.count("\n", seen, position), position
        try:
            value, end = parser.value_at(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from None
        except ValueError as error:
            raise broken(_reason(error), position) from None
        yield _row(value, name, number, line, parser, text[position:end])
        position = _skip(text, end)
        if not in_array:
            if position < len(text):
                raise broken("more text after the map", position)
            return
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
            if text[position : position + 1] == "]":
                raise broken("a comma before ]", position)
        elif text[position : position + 1] != "]":
            raise broken(
                "a comma or ] is missing" if position < len(text) else "the file ends inside the array", position
            )
    if position >= len(text):
        raise broken("the file ends inside the array", position)
    if _skip(text, position + 1) < len(text):
        raise broken("more text after the array", _skip(text, position + 1))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def csv_rows(text: str, name: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Records of a CSV file with a header line; a record is named by the line at which it begins.

    Raises:
        UserError: no header, or a column that stands in it twice.
    """
    before = csv.field_size_limit(
        len(text) + 1
    )  # the default cuts long texts off with an error; the limit is global, so it is put back
    try:
        records = list(_csv_records(text, name, delimiter))
    finally:
        csv.field_size_limit(before)
    (_, header), *rest = records
    if isinstance(header, BadRow):
        raise UserError(header.where, header.found, header.expected)
    if len(set(header)) < len(header) or not all(header):
        raise UserError(f"{name}:1", f"the header is {excerpt(header)}", "a name for each column, each once")
    for line, record in rest:
        if isinstance(record, BadRow):
            yield record
        elif len(record) != len(header):
            yield BadRow(
                f"{name}:{line}",
                "",
                f"{len(record)} fields",
                f"{len(header)} fields: {excerpt(header)}",
                "put texts with commas or line ends into quotes",
            )
        else:
            yield Row(dict(zip(header, record, strict=True)), name, line)


def _csv_records(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield (
                line,
                BadRow(
                    f"{name}:{line}", "", f"broken CSV: {error}", "texts with quotes, commas or line ends in quotes"
                ),
            )
            continue
        if record:
            yield line, record


def parquet_rows(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Records of a Parquet file, numbered from 1.

    Raises:
        UserError: the file is no Parquet, or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, name, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            name, f"no readable Parquet file: {str(error).splitlines()[0][:120]}", "a whole Parquet file"
        ) from None


def hub_dataset(file: DataFile) -> Any:
    """A split of a data set of the hub (or of a local folder in its layout), memory-mapped.

    Raises:
        UserError: there is no such data set, subset or split.
        EnvironmentProblem: the hub cannot be reached.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name = file.path.removeprefix(HUB)
    try:
        return load_dataset(name, file.subset, split=file.split)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            file.path, f"there is no such data set: {_first_line(error)}", "hf:org/name, or a local file without hf:"
        ) from None
    except (OfflineModeIsEnabled, ConnectionError, HfHubHTTPError) as error:
        raise EnvironmentProblem(
            file.path,
            f"the hub cannot be reached: {_first_line(error)}",
            "a connection, or a local file",
            "luthier download fetches ahead of time",
        ) from None
    except (DatasetsError, ValueError) as error:
        raise UserError(
            file.path,
            f"cannot be read (subset {file.subset}, split {file.split}): {_first_line(error)}",
            "an existing subset and split",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
