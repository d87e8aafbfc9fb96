"""The row that is asked for, read and encoded alone: what becomes of it, also where it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from luthier.data.chat.renderer import ChatRenderer
from luthier.data.dataset.reread import parsed, samples_of
from luthier.data.dataset.workers import Encoding
from luthier.data.recognise import Part, RowParser, row_parser_of
from luthier.data.row_names import NAMES, RowName, option_of, row_called
from luthier.errors import BadRow, UserError
from luthier.inspecting.data.shown_row import ShownRow, shown_row
from luthier.system.words import counted
from luthier.types import Conversation, Example, Row, Sample, Text


@dataclass(frozen=True, slots=True)
class Called:
    """A row, and the file that it is of."""

    row: Row | BadRow
    part: Part
    parser: RowParser | None


def rows_called(parts: Iterable[Part], system: str | None, name: str) -> list[Called]:
    """The row of a name; of a line alone, that of each file.

    Args:
        system: `data.system` of the configuration.

    Raises:
        UserError: there is none, or several begin at the line.
    """
    wanted, out, nearest = RowName.read(name), list[Called](), ""
    for part in parts:
        if wanted.is_in(part.source.name):
            parser, rows = row_parser_of(part.source, part.source.rows(), f"data.{part.purpose}", system)
            row, before = row_called(wanted, rows)
            nearest = before or nearest
            if row is not None:
                out.append(Called(row, part, parser))
    if not out:
        fix = option_of(RowName.read(nearest)) if nearest else "--row 1"
        raise UserError(f"--row {name}", "no row has this name", NAMES, fix)
    return out


def look_at(called: Called, encoding: Encoding) -> list[ShownRow]:
    """The row's samples; one without tokens where it has none."""
    row, why = called.row, ["asked for"]
    chunk = encoding.chunk([row], called.parser, called.part.purpose)
    place = row.place if isinstance(row, Row) else row.row
    example = parsed(called.parser, row) if called.parser is not None and isinstance(row, Row) else None
    for purpose, made in chunk.sets.items():
        if len(made):
            if lost := chunk.ledger.tokens_cut:
                why.append(f"it was cut: {counted(lost, 'token')} at its end {'is' if lost == 1 else 'are'} lost")
            roles, pieces = encoding.objective.roles, encoding.objective.pieces
            # Whether a text before it is learned is not known of a row alone: where there is one, it is taken to be.
            follows = pieces is not None and pieces.joined and isinstance(row, Row) and row.number > 1
            return [
                shown_row(encoding.renderer, sample, example, place, purpose, why, roles=roles, follows=follows)
                for sample in made.samples
            ]
    (rejected,) = chunk.rejected
    field = rejected["where"].removeprefix(place).strip()
    why.append(
        f"it {'cannot be used' if chunk.refused else 'was dropped'}: "
        + ": ".join(filter(None, (field, rejected["reason"])))
    )
    return [
        shown_row(encoding.renderer, sample, example, place, "dropped", why, fits=_fits(sample, encoding.limit))
        for sample in _unused(encoding.renderer, example)
    ] or [ShownRow(place, "dropped", why, [], 0)]


def _unused(renderer: ChatRenderer, example: Example | None) -> list[Sample]:
    """What a row would be trained as that is not; nothing where it has no tokens."""
    try:
        return samples_of(renderer, example) if isinstance(example, Conversation | Text) else []
    except UserError:
        return []


def _fits(sample: Sample, limit: int | None) -> int | None:
    return limit if limit is not None and len(sample) > limit else None
