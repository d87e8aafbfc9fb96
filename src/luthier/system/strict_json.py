"""JSON without what Python's parser lets pass in silence: a key that stands in a map twice (the last one wins there), NaN
and Infinity, which JSON does not have, and values that are nested so deeply that whoever walks over them fails.

A hook of Python sees each map. Parsing without it and walking over the value afterwards, to count what it lost, takes
longer: the walk meets every map and text again.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from luthier.errors import excerpt

MOST_NESTED = 200
"""Lists and maps in each other: half as many as can be given to another process."""

Fault = tuple[str, str]
"""(what was found, what was expected)"""


@dataclass
class StrictJSON:
    """A parser; what JSON forbids and Python allows, and what is nested too deeply, is noted in `faults`."""

    faults: list[Fault] = field(default_factory=list)
    """of the value that was read last"""

    def __post_init__(self) -> None:
        self._decoder = json.JSONDecoder(parse_constant=self._constant, object_pairs_hook=self._map)

    def value_at(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends.

        Raises:
            ValueError: no JSON (then it is a JSONDecodeError, which has a position), nested far too deeply, or a number
                of thousands of digits.
        """
        self.faults.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets > MOST_NESTED and is_nested(value):
            self.faults.append(("lists and maps nested too deeply", f"at most {MOST_NESTED} in each other"))
        return value, end

    def _map(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            self.faults.append((f"the key {excerpt(twice)} stands in it twice", "each key once"))
        return out

    def _constant(self, name: str) -> float:
        self.faults.append((f"the value {name}", "JSON, which has no such value"))
        return 0.0


def is_nested(value: Any, most: int = MOST_NESTED) -> bool:
    """Whether anything stands inside more than `most` lists and maps."""
    level = [value]
    for _ in range(most + 1):
        maps = (one.values() for one in level if isinstance(one, dict))
        level = list(chain(*maps, *(one for one in level if isinstance(one, list))))
    return bool(level)


def parse(text: str) -> Any:
    """The value of a whole text.

    Raises:
        ValueError: it is no JSON, or has one of the faults; says what and where.
    """
    parser = StrictJSON()
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = parser.value_at(text, start)
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    if parser.faults:
        raise ValueError(parser.faults[0][0])
    return value


def map_in(file: Path) -> dict[str, Any]:
    """What a file holds, for who asks before it is read for good; nothing where it is no map: whoever reads it then says it better."""
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def reason(error: ValueError) -> str:
    """What a parser's error says, in a few words."""
    return f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]
