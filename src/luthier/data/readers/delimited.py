"""CSV and TSV with a header line. A record is named by the line at which it begins; blank lines are no records."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from luthier.data.readers import _bytes
from luthier.data.readers._bytes import File, empty, lines, not_utf8, opened, skip_mark_of_order
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
                f"{file.name}:{line}", "", f"{len(record)} fields", f"{len(header)} fields: {excerpt(header)}", QUOTE
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
        reader = csv.reader(_text_lines(file, lines(file, stream)), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            # The default limit cuts long texts off with an error. It is global, so it is put back at once.
            before = csv.field_size_limit(_bytes.MOST_RECORD_BYTES)
            try:
                record: list[str] | BadRow = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                record = BadRow(
                    f"{file.name}:{line}", "", f"broken CSV: {error}", "fields that can be told apart", QUOTE
                )
                if reader.line_num > line:  # which of these lines are records of their own cannot be told
                    found = f"{record.found}; an open quote takes in lines {line:,} to {reader.line_num:,}"
                    raise UserError(record.where, found, record.expected, QUOTE) from None
            finally:
                csv.field_size_limit(before)
            if record:
                yield line, record


def _text_lines(file: File, numbered: Iterator[tuple[int, bytes | BadRow]]) -> Iterator[str]:
    for number, line in numbered:
        if isinstance(line, BadRow):
            raise UserError(line.where, line.found, line.expected, QUOTE)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(file, number, error) from None
        if "\r" in text[:-2]:
            yield from PARTS.findall(text)
        else:
            yield text
