"""Earlier turns as pairs of texts."""

from __future__ import annotations

from luthier.errors import BadRow, excerpt
from luthier.formats._shared import filled, found, text_of
from luthier.types import Message, Row


def history_of(row: Row, column: str | None) -> tuple[list[Message], list[str]]:
    """The messages of a list of [request, answer] pairs, and their places. Raises BadRow."""
    history = row.values.get(column) if column else None
    if history is None:
        return [], []
    if not isinstance(history, (list, tuple)):
        raise BadRow(row.place, column or "", found(history), "a list of [request, answer] pairs")
    messages, places = list[Message](), list[str]()
    for index, pair in enumerate(history):
        place = f"{column}[{index}]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(row.place, place, excerpt(pair), "a pair [request, answer]")
        texts = [filled(row, text_of(row, {place: text}, place), place) for text in pair]
        messages += [Message("user", texts[0]), Message("assistant", texts[1])]
        places += [place, place]
    return messages, places
