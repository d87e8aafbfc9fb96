"""From pieces of text to token ids, without inserted special tokens and without inserted spaces.

A text is encoded in pieces, so that the ids before an answer cannot depend on the answer. Some tokenizers put a space
before whatever they are given, also before a piece from the middle of a text; such a piece is encoded so that it gives
what it would give in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text, and what stands before it."""

    text: str
    after: str | None = ""
    """"" at the beginning of the text; the control token that stands directly before it; None after ordinary text"""
    trained: bool = False


class Encoder:
    """The tokenizer as a function from pieces to ids. Batches run on all cores where the tokenizer is a fast one.

    `control`: texts and ids of tokens that are a template's though the tokenizer holds them for ordinary ones.
    """

    def __init__(self, tokenizer: Any, control: Mapping[str, int] | None = None) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        named = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
        self.control: dict[str, int] = (
            {str(token): index for index, token in added.items() if token.special and str(token)}
            | named
            | dict(control or {})
        )
        self.control_ids = set(self.control.values()) - {tokenizer.unk_token_id}
        """ids that only a template may write; the id for unknown characters is not one of them"""
        words = sorted(map(re.escape, self.control), key=len, reverse=True)
        self._control = re.compile("|".join(words) or r"(?!)")
        self._control_at_end = re.compile(f"(?:{'|'.join(words) or '(?!)'})\\Z")
        self._longest = max(map(len, self.control), default=0)
        self._fast, self._inner = _backends(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.adds_bos = self.bos_id is not None and list(tokenizer("a")["input_ids"])[:1] == [self.bos_id]
        """whether the tokenizer begins plain text with BOS"""

    def find_control(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first control token written out in `text`, from `start` on."""
        return self._control.search(text, start)

    def control_at_end(self, text: str) -> str | None:
        """The control token that `text` ends with."""
        match = self._control_at_end.search(text, max(0, len(text) - self._longest))
        return match.group() if match else None

    def count_control(self, text: str) -> int:
        """How many control tokens are written out in `text` (those that stand for ids of `control_ids`)."""
        return sum(self.control[match.group()] in self.control_ids for match in self._control.finditer(text))

    def places_inside_control(self, text: str) -> list[int]:
        """Where `text` must be cut so that no control token is left in it: after the first character of each.
        Overlapping ones too.
        """
        if self.find_control(text) is None:
            return []
        return sorted(
            {match.start() + 1 for word in self.control for match in re.finditer(f"(?={re.escape(word)})", text)}
        )

    def encode(self, pieces: Sequence[Piece]) -> list[Ids]:
        """The ids of each piece."""
        if self._fast is None:
            return [self._encode_slowly(piece) for piece in pieces]
        out: list[Ids] = [[] for _ in pieces]
        plain = [(index, piece.after + piece.text) for index, piece in enumerate(pieces) if piece.after is not None]
        inner = [(index, piece.text) for index, piece in enumerate(pieces) if piece.after is None]
        for backend, texts in ((self._fast, plain), (self._inner, inner)):
            encodings = (
                backend.encode_batch_fast([text for _, text in texts], add_special_tokens=False) if texts else []
            )
            for (index, _), encoding in zip(texts, encodings, strict=True):
                out[index] = encoding.ids[1:] if pieces[index].after else encoding.ids
        return out

    def _encode_slowly(self, piece: Piece) -> Ids:
        ids = list(self.tokenizer.encode((piece.after or "") + piece.text, add_special_tokens=False))
        return ids[1:] if piece.after else ids


def _backends(tokenizer: Any) -> tuple[Any, Any]:
    """The tokenizer's Rust object (None where it has none), and the same without spaces put before the text."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None, None
    state = json.loads(backend.to_str())
    inner = _without_prefixes(state)
    if (
        backend.truncation is not None or backend.padding is not None
    ):  # a file may carry both; ours must not cut, and theirs not change
        backend = Tokenizer.from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    if inner == state:
        return backend, backend
    changed = Tokenizer.from_str(json.dumps(inner))
    changed.no_truncation()
    changed.no_padding()
    return backend, changed


def _without_prefixes(node: Any) -> Any:
    """A tokenizer's JSON with everything switched off that puts a space before a text (decoders play no part in
    encoding).
    """
    if isinstance(node, list):
        return [kept for item in node if (kept := _without_prefixes(item)) is not None]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return None
    out = {key: value if key in ("model", "added_tokens") else _without_prefixes(value) for key, value in node.items()}
    if kind == "Metaspace":
        out["prepend_scheme"] = "never"
    if kind == "ByteLevel":
        out["add_prefix_space"] = False
    return out
