"""CSV and TSV with a header line. A record is named by the line at which it begins; blank lines are no records."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from luthier.data.readers._bytes import File, Lines, empty, not_utf8, opened, skip_mark_of_order
from luthier.errors import BadRow, UserError, excerpt
from luthier.types import Row

PARTS = re.compile(r"[^\r]*\r(?!\n)|.+", re.DOTALL)
"""A line that carriage returns alone cut further: the end of a line in some CSV files."""

QUOTE = "put texts with commas, quotes or line ends into quotes, and double the quotes in them"
OTHER_DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "bars"}


def rows(file: File, start: int = 0) -> Iterator[Row | BadRow]:
    """The records: every value is a text.

    Raises:
        UserError: no header, or a column that stands in it twice; another encoding, or a quote that is not closed on its
            line and breaks the file, with the line.
    """
    endings = [ending.lower() for ending in file.path.suffixes[-2:]]
    delimiter = "\t" if ".tsv" in endings and ".csv" not in endings else ","
    records = _records(file, delimiter)
    header: list[str] = []
    for line, record in records:
        if isinstance(record, BadRow):
            raise UserError(record.where, record.found, record.expected, QUOTE)
        header = record
        _check_header(file, line, header, delimiter)
        break
    else:
        raise empty(file)
    for number, (line, record) in enumerate(records):
        if number < start:
            continue
        if isinstance(record, BadRow):
            yield record
        elif len(record) != len(header):
            yield BadRow(
                f"{file.name}:{line}",
                "",
                f"{len(record):,} fields",
                f"{len(header):,} fields: {excerpt(header)}",
                QUOTE,
            )
        else:
            yield Row(dict(zip(header, record, strict=True)), file.name, line)


def _check_header(file: File, line: int, header: list[str], delimiter: str) -> None:
    place = f"{file.name}:{line}"
    if len(set(header)) < len(header) or not all(header):
        raise UserError(
            place, f"the header is {excerpt(header)}", "a name for each column, each once", "name the columns"
        )
    other = next((char for char in OTHER_DELIMITERS if char != delimiter and char in header[0]), None)
    if len(header) == 1 and other:
        what = f"the header is one column, {excerpt(header[0])}, with {OTHER_DELIMITERS[other]} in it"
        fix = "name the file .tsv" if other == "\t" else "save it with commas"
        raise UserError(
            place, what, "columns with a comma between them" if delimiter == "," else "tabs between them", fix
        )


def _records(file: File, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    with opened(file) as stream:
        skip_mark_of_order(file, stream)
        source = _Source(Lines(file, stream))
        reader = csv.reader(source, delimiter=delimiter, strict=True)
        while True:
            source.begin_record()
            # The default limit cuts long texts off with an error. It is global, so it is put back at once.
            before = csv.field_size_limit(file.limits.row_bytes)
            try:
                record: list[str] | BadRow = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record = BadRow(
                    f"{file.name}:{source.first}", "", f"broken CSV: {error}", "fields that can be told apart", QUOTE
                )
                if source.line > source.first:  # which of these lines are records of their own cannot be told
                    raise source.open_quote(record.found) from None
            finally:
                csv.field_size_limit(before)
            if record:
                yield source.first, record
            else:
                source.skip_blank()


class _Source:
    """What the parser reads: it asks for as many lines as a record has."""

    def __init__(self, numbered: Lines) -> None:
        self.first = self.line = 0
        """numbers of the record's first line, and of the one that was given last; a line that carriage returns cut counts as
        so many lines"""
        self._numbered = numbered
        self._rest: list[str] = []
        """of such a line, the last part first"""
        self._more = 0
        """how many lines more than line feeds there were"""
        self._size = 0

    def begin_record(self) -> None:
        self._size = 0

    def skip_blank(self) -> None:
        while self._rest and self._rest[-1] == "\r":
            self._rest.pop()
            self._more += 1
        if not self._rest:
            self._numbered.skip_blank()

    def open_quote(self, found: str) -> UserError:
        """The error of a record that takes in more lines than it should."""
        file = self._numbered.file
        found += f"; an open quote takes in lines {self.first:,} to {self.line:,}"
        return UserError(f"{file.name}:{self.first}", found, "fields that can be told apart", QUOTE)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._rest:
            self._more += 1
            text = self._rest.pop()
        else:
            text = self._next_line()
        self.line = self._numbered.number + self._more
        if self._size == 0:
            self.first = self.line
        self._size += len(text)
        most = self._numbered.file.limits.row_bytes
        if self._size > most and self.line > self.first:
            raise self.open_quote(f"a record of more than {most:,} bytes")
        return text

    def _next_line(self) -> str:
        number, line = next(self._numbered)
        if isinstance(line, BadRow):
            raise UserError(line.where, line.found, line.expected, f"{line.fix}; else {QUOTE}")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self._numbered.file, number, error) from None
        if "\r" in text[:-2]:
            text, *rest = PARTS.findall(text)
            self._rest = rest[::-1]
        return text
