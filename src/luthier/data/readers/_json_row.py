"""A parsed JSON value as a row."""

from __future__ import annotations

from typing import Any

from luthier.errors import BadRow, excerpt
from luthier.system.strict_json import StrictJSON
from luthier.types import Row


def row_of(value: Any, name: str, number: int, line: int | None, parser: StrictJSON, raw: str) -> Row | BadRow:
    """A parsed value as a row, if it is a map without faults."""
    if parser.faults or not isinstance(value, dict):
        place = Row({}, name, number, line).place
        if parser.faults:
            found, expected = parser.faults[0]
            return BadRow(place, "", found, expected, raw=raw)
        return BadRow(place, "", excerpt(value), 'a map in braces: {"key": "value"}', raw=raw)
    return Row(value, name, number, line)
