"""What is read, and as what: the files of a configuration, and the format of each file's rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier import component
from luthier.component import ComponentConfig
from luthier.config import DataFile, RunConfig
from luthier.config.answers import as_word
from luthier.data.columns import NoFormat, Proposed, proposed
from luthier.data.files import Source, is_of_hub, sources
from luthier.data.readers import Limits, Told, size_of
from luthier.data.registry import from_registry
from luthier.data.subset import sampled
from luthier.errors import BadRow, excerpt
from luthier.formats import Format
from luthier.types import Example, Message, Preference, Row, Text

ROWS_TO_RECOGNISE = 8
BYTES_TO_RECOGNISE = 16 << 20
Purpose = Literal["train", "eval"]


@dataclass(frozen=True)
class Part:
    """One file, and what it is for."""

    source: Source
    purpose: Purpose
    entry: int
    """of the configuration, from 0, those that are held out after the others; its files stand one after the other"""
    weight: float
    """the entry's share where entries are mixed"""


@dataclass(frozen=True)
class RowParser:
    """The format of a file's rows."""

    format: Any
    kind: str
    recognised: bool
    system: str | None = None
    """put before conversations that have no system text"""
    limits: Limits = field(default_factory=Limits)

    def parse(self, row: Row) -> Example:
        """What the row means. Raises BadRow."""
        if self.recognised:
            self._refuse_another_kind(row)
        example: Example = self.format.parse(row)
        if (count := _messages_of(example)) > self.limits.row_messages:
            raise self.limits.too_many_messages(row.place, count)
        if self.system is None or isinstance(example, Text):
            return example
        if isinstance(example, Preference):
            return replace(example, prompt=self._with_system(example.prompt))
        return replace(example, messages=self._with_system(example.messages))

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if self.system is None or messages[0].role == "system":
            return messages
        return (Message("system", self.system), *messages)

    def _refuse_another_kind(self, row: Row) -> None:
        """A format that was recognised by the first rows takes no row with a verdict on its answer: else the worse answers
        would be learned like the others. Raises BadRow.
        """
        columns = frozenset(map(str, row.values))
        for other, verdicts in judging_formats():
            if columns.issuperset(verdicts) and other is not type(self.format):
                ours, theirs = self.format.fit(columns, row.values), other.fit(columns, row.values)
                if (theirs or 0) > (ours or 0):
                    expected = f"rows of the format {self.kind}, which the first ones have"
                    fix = f"format: {self.kind} ignores it"
                    raise BadRow(row.place, verdicts[-1], "a verdict on an answer", expected, fix)


def _messages_of(example: Example) -> int:
    if isinstance(example, Text):
        return 0
    if isinstance(example, Preference):
        return len(example.prompt) + max(map(len, example.answers))
    return len(example.messages)


def parts_of(
    config: RunConfig, takes: Sequence[type], told: Told = lambda name, share: None, limits: Limits | None = None
) -> list[Part]:
    """The files to learn from and those that are held out, in their order.

    Args:
        takes: the types of example that the objective can learn from.
        told: hears how far a file is read.
        limits: what rows and files may grow to; by default as the configuration says.

    Raises:
        UserError: a file is not there, or the registry does not know a name.
    """
    parts, limits = [], limits or Limits.of(config.data)
    for entry, (purpose, key, file) in enumerate(files_of(config, takes)):
        named = [replace(source, limits=limits, told=told) for source in sources_of(config, key, file)]
        found = sampled(named, file, config.data.max_samples, config.seed)
        parts += [Part(source, purpose, entry, file.weight) for source in found]
    return parts


def files_of(config: RunConfig, takes: Sequence[type]) -> Iterator[tuple[Purpose, str, DataFile]]:
    """(purpose, the entry's place in the configuration, the entry) for each; names of a registry as what they stand for.

    Raises:
        UserError: the registry does not know a name.
    """
    data = config.data
    groups: list[tuple[Purpose, tuple[DataFile, ...]]] = [("train", data.train)]
    if isinstance(data.eval, tuple):
        groups.append(("eval", data.eval))
    for purpose, files in groups:
        for index, file in enumerate(files):
            key = f"data.{purpose}[{index}]"
            yield purpose, key, file if data.registry is None else from_registry(data.registry, file, takes, key)


def sources_of(config: RunConfig, key: str, file: DataFile) -> list[Source]:
    """The files of an entry at its place in the configuration, as `files_of` has them. Raises as `sources`."""

    def written(path: str) -> str:
        """The override with another path in this place; it would be a name of a registry where there is one."""
        purpose, _, place = key.removeprefix("data.").partition("[")
        named: tuple[DataFile, ...] = getattr(config.data, purpose)
        if config.data.registry is not None:
            return f"data.registry=null {as_word(f'data.{purpose}', path)}"
        entries = [each.model_dump(exclude_unset=True) for each in named]
        entries[int(place.removesuffix("]"))]["path"] = path
        short = [each["path"] if each.keys() == {"path"} else each for each in entries]
        return as_word(f"data.{purpose}", short if len(short) > 1 else short[0])

    return sources(file, f"{key}.path", written)


def paths_of(config: RunConfig) -> Iterator[Path]:
    """The files and folders that a configuration names."""
    objective: Any = component.load("objectives", config.objective.kind)
    for _, key, file in files_of(config, objective.takes):
        if not is_of_hub(file):
            yield from (source.path for source in sources_of(config, key, file) if source.path is not None)
    others = (config.data.registry, config.data.chat_template, config.model.path)
    yield from (Path(other) for other in others if other)


def format_of(kind: str) -> Literal["auto"] | ComponentConfig:
    """What `DataFile.format` holds for a bare name. Raises UserError where there is no such format."""
    if kind == "auto":
        return "auto"
    config: ComponentConfig = component.load("formats", kind).Config(kind=kind)
    return config


def recognised(rows: Sequence[Row], name: str, key: str) -> Any:
    """The one format that recognises the first rows, ready to parse them. Raises UserError as `recognise`."""
    kind = component.load("formats", recognise(rows, name, key))
    return kind(kind.Config())


def row_parser_of(
    source: Source, rows: Iterator[Row | BadRow], key: str, system: str | None = None
) -> tuple[RowParser | None, Iterator[Row | BadRow]]:
    """The parser of a file's rows, and the rows; it is recognised by the first of them where the file names no format.

    No parser means that none of the first rows could be read.

    Raises:
        UserError: no format fits, or several do; `key` names the place in the configuration.
    """
    given = source.file.format
    first: list[Row | BadRow] = []
    if given == "auto":
        first = _first(rows)
        good = [row for row in first if isinstance(row, Row)]
        if not good:
            return None, itertools.chain(first, rows)
        given = format_of(recognise(good, source.name, key))
    assert isinstance(given, ComponentConfig)
    recognised = source.file.format == "auto"
    parser = RowParser(component.make("formats", given), given.kind, recognised, system, source.limits)
    return parser, itertools.chain(first, rows)


def _first(rows: Iterator[Row | BadRow]) -> list[Row | BadRow]:
    """Rows to recognise the format by: fewer where they are large."""
    first, size = list[Row | BadRow](), 0
    for row in itertools.islice(rows, ROWS_TO_RECOGNISE):
        first.append(row)
        size += size_of(row.values) if isinstance(row, Row) else 0
        if size > BYTES_TO_RECOGNISE:
            break
    return first


@cache
def judging_formats() -> list[tuple[type[Format], tuple[str, ...]]]:
    """The formats that read verdicts on answers, and the columns of these."""
    formats = [component.load("formats", kind) for kind in component.listing("formats")]
    return [(each, each.verdicts) for each in formats if each.verdicts]


def best_formats(row: Row) -> list[str]:
    """The formats that fit a row best, by what each says; none where no one fits, or the row does not tell."""
    columns, fits = frozenset(map(str, row.values)), dict[str, int]()
    for kind in component.listing("formats"):
        fit = component.load("formats", kind).fit(columns, row.values)
        if fit is None:
            return []
        fits[kind] = fit
    most = max(fits.values())
    return [kind for kind, fit in fits.items() if fit == most > 0]


def recognise(rows: Sequence[Row], name: str, key: str) -> str:
    """The one format that fits the first rows best.

    Raises:
        UserError: none does, or several do; lists the columns.
    """
    kinds = component.listing("formats")
    for row in rows:
        found = best_formats(row)
        if len(found) == 1:
            return found[0]
        if found:
            columns = frozenset(map(str, row.values))
            one = Proposed(found[0], evident=False)
            wrong, expected = (
                f"several formats fit the columns {excerpt(sorted(columns))}",
                "one of " + ", ".join(found),
            )
            raise NoFormat(row.place, wrong, expected, one.word(key, name), one)
    columns = frozenset(map(str, rows[0].values))
    known = (f"{kind} ({', '.join(component.load('formats', kind).columns)})" for kind in kinds)
    likely = proposed(rows[0].values)
    raise NoFormat(
        rows[0].place,
        f"no format fits the columns {excerpt(sorted(columns))}",
        "one of " + ", ".join(known),
        likely.word(key, name),
        likely,
    )
