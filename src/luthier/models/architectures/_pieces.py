"""What the tokenizers of this folder share: they come from a SentencePiece file, `tokenizer.model`."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

VOCAB_FILE = "tokenizer.model"
SPACE = "\u2581"
"""SentencePiece's sign for a blank."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces, as SentencePiece numbers them."""


def is_of(folder: Any, class_name: str) -> bool:
    """Whether a folder holds a tokenizer of its architecture. Another may have been put there: a `tokenizer.json` whose
    settings name another class is that class's. (A name on a hub is taken to be the published one.)"""
    where = Path(str(folder))
    if not where.is_dir() or (where / VOCAB_FILE).is_file():
        return True
    settings = where / "tokenizer_config.json"
    if not settings.is_file():
        return False
    found = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
    return bool(found == class_name)


def closed_by(tokens: Sequence[str], closing: Collection[str | None], decode: Callable[[list[str]], str]) -> str:
    """The text of tokens as the original programs write it: a blank stands before a text that one of `closing` ends."""
    text, part, after_closing = "", list[str](), False
    for place, token in enumerate(tokens):
        if token not in closing:
            part.append(token)
            after_closing = False
            continue
        text += (" " if place and not after_closing else "") + (decode(part) if part else "") + token
        part, after_closing = [], True
    return text + (decode(part) if part else "")


def pieces_in(file: Path) -> Iterator[tuple[str, float, int]]:
    """Text, score and kind of every piece of a SentencePiece file, in the order of their ids.

    The file is a protobuf message, whose field 1 is a piece: its field 1 the text, 2 the score, 3 the kind.

    Raises:
        ValueError: it is no such file, or cut off.
    """
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                piece: dict[int, Any] = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                yield piece[1].decode("utf-8"), score, piece.get(3, NORMAL)
    except (IndexError, KeyError, UnicodeDecodeError, AttributeError, TypeError, struct.error) as error:
        raise ValueError(f"{file} is no SentencePiece file, or damaged") from error


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protobuf message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError(kind)
        if place + size > len(data):
            raise IndexError(place)
        yield tag >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
