"""What is said of rows that cannot be used, and of data of which nothing is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from luthier.component import ComponentConfig, nearest
from luthier.config import DataConfig
from luthier.config.documents import to_line
from luthier.data.columns import LONGEST, proposed
from luthier.data.dataset.cache import SHOWN_REFUSED, Account
from luthier.data.dataset.held_out import share_that_holds_out
from luthier.data.dataset.ledger import Ledger
from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.workers import prompt_of
from luthier.data.recognise import Part, row_parser_of
from luthier.errors import BadRow, UserError, excerpt
from luthier.system.words import counted
from luthier.types import Row

ROWS_LOOKED_AT = 10_000
"""Most rows that are read again to propose a share that holds out some."""


def all_refused_rows(account: Account, data: DataConfig, parts: list[Part]) -> UserError | None:
    """One error for all rows that cannot be used: the first places, how many more, and what to write."""
    if not account.refused_rows:
        return None
    remedies = {row.fix for row in account.refused}
    common = remedies.pop() if len(remedies) == 1 else ""
    shown = [
        f"  {row.where}: found {row.found}"
        + (f"; expected {row.expected}" if row.expected else "")
        + (f" ({row.fix})" if row.fix and not common else "")
        for row in account.refused
    ]
    count, rows_in, long = account.refused_rows, account.ledger.rows_in, account.refused_long
    if count > SHOWN_REFUSED:
        where = "; luthier data with on_bad_row=drop on_long_row=drop and --json lists all" if count < rows_in else ""
        shown.append(f"  and {count - SHOWN_REFUSED:,} more{where}")
    head = f"{count:,} of {counted(rows_in, 'row')} cannot be used ({_percent(count / rows_in)}); nothing was trained"
    if count == rows_in and (other := _other_columns(parts)):
        return UserError("", "\n".join([head, *shown]), "", other)
    fixes = [common] if common else ["mend the rows"] if long < count else []
    if long < count < rows_in:  # dropping all of them leaves nothing to learn from
        fixes.append("on_bad_row=drop (they go to rejected.jsonl)")
    if long:
        truncate = " or truncate (their ends are lost)" if data.on_long_row == "error" else ""
        fixes.append(f"on_long_row=drop{truncate}")
        fixes.append("rows of fewer tokens" + (", or a larger max_length" if data.max_length is not None else ""))
    return UserError("", "\n".join([head, *shown]), "", ", or ".join(fixes))


def _other_columns(parts: list[Part]) -> str:
    """The format with a column that the rows have, where the one that a file names reads a column that its first row has not; ""
    where that is not what is wrong, or nothing is near."""
    for part in parts:
        given = part.source.file.format
        if isinstance(given, str):
            continue
        parser, rows = row_parser_of(part.source, part.source.rows(), "data.train")
        row = next((row for row in rows if isinstance(row, Row)), None)
        if parser is None or row is None:
            continue
        try:
            parser.parse(row)
        except BadRow as error:
            if error.field not in row.values and (said := _meant(given, error.field, row.values)):
                return said
    return ""


def _meant(given: ComponentConfig, column: str, row: Mapping[str, Any]) -> str:
    """What to write for a format that reads a column which is not there."""
    named = given.model_dump(mode="json", exclude_unset=True) | {"kind": given.kind}
    if near := nearest(column, [name for name in map(str, row) if len(name) <= LONGEST], 1):
        keys = (key for key, value in given.model_dump(mode="json").items() if value == column)
        return "".join(
            f'did you mean "{near[0]}"? format: {to_line({**named, key: near[0]})}' for key in islice(keys, 1)
        )
    likely = proposed(row)
    return f"format: {to_line(likely.format)}" if likely.evident and isinstance(likely.format, dict) else ""


def _percent(share: float) -> str:
    """Of a part that is there: `100 %` is all of it, and the smallest says that it is smaller."""
    if share < 0.0001:
        return "less than 0.01 %"
    digits = 0 if share == 1 else 1 if share >= 0.01 else 2
    return f"{min(100 * share, 99.9 if share < 1 else 100):.{digits}f} %"


def nothing_left(
    data: DataConfig, parts: list[Part], ledger: Ledger, sets: Mapping[str, SampleSet]
) -> UserError | None:
    """The error of data of which nothing is left to learn from, or to hold out."""
    if not len(sets.get("train", ())):
        names = ", ".join(part.source.name for part in parts if part.purpose == "train")
        why = f"; of {ledger.rows_in:,}, {ledger.rows_dropped:,} were dropped and {ledger.rows_held_out:,} held out"
        return UserError(
            names,
            "no rows are left to learn from" + why,
            "at least one row",
            _other_columns(parts) or "without on_bad_row=drop and on_long_row=drop the reasons are listed",
        )
    if data.eval is not None and not len(sets.get("eval", ())):
        return UserError(
            "data.eval",
            f"{excerpt(data.eval)} holds out none of {counted(ledger.rows_trained, 'row')}",
            "at least one row",
            _more_held_out(data, parts),
        )
    return None


def _more_held_out(data: DataConfig, parts: list[Part]) -> str:
    """What to write where the share that is given holds out nothing of a few rows."""
    share = share_that_holds_out(islice(_prompts(data, parts), ROWS_LOOKED_AT))
    larger = f"data.eval={share:g}, or " if share is not None else ""
    return f"{larger}a file, or leave data.eval out"


def _prompts(data: DataConfig, parts: list[Part]) -> Iterator[str]:
    """Of the rows that are to be learned from and can be read."""
    for part in parts:
        if part.purpose == "train":
            parser, _ = row_parser_of(part.source, part.source.rows(), "data.train", data.system)
            for row in part.source.rows():
                with suppress(BadRow):
                    if parser is not None and isinstance(row, Row):
                        yield prompt_of(parser.parse(row))
