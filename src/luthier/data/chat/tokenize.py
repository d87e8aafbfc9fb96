"""From pieces of text to token ids, without inserted special tokens and without inserted spaces.

A text is encoded in pieces, so that the ids before an answer cannot depend on the answer. Some tokenizers put a space
before whatever they are given, also before a piece from the middle of a text; such a piece is encoded so that it gives
what it would give in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from luthier.errors import UserError, excerpt

Ids = list[int]
Joint = tuple[str, str]
"""The characters before and after a cut."""
JOINT_BEFORE, JOINT_AFTER = 32, 16
FIRST_WORD = re.compile(rf"\s{{0,{JOINT_AFTER}}}\S{{1,{JOINT_AFTER}}}")
"""Over so much of the text on each side of a cut one encoding of the whole is compared with that of the parts."""
KNOWN_JOINTS = 100_000
"""Joints that are remembered: answers begin with few different words."""

ANCHORS = ("\U0010fffd", ".", "a", "0", "|", "\n")
"""Characters to put before the middle of a text, of which one is a token of its own there."""


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
        self.control_ids = frozenset(self.control.values()) - {tokenizer.unk_token_id}
        """ids that only a template may write; the id for unknown characters is not one of them"""
        words = sorted(map(re.escape, self.control), key=len, reverse=True)
        self._single = tuple(word for word in self.control if len(word) == 1)
        self._known_joints: dict[Joint, bool] = {}
        self._beginnings = tuple({word[0] for word in self.control})
        self._control = re.compile("|".join(words) or r"(?!)")
        self._control_at_end = re.compile(f"(?:{'|'.join(words) or '(?!)'})\\Z")
        self._longest = max(map(len, self.control), default=0)
        self._swallowing = {str(token) for token in added.values() if token.rstrip}
        """tokens that take the white space behind them with them"""
        self._fast, self._inner = _backends(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.adds_bos = self.bos_id is not None and list(tokenizer("a")["input_ids"])[:1] == [self.bos_id]
        """whether the tokenizer begins plain text with BOS"""

    def find_control(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first control token written out in `text`, from `start` on."""
        return self._control.search(text, start)

    def control_at_end(self, text: str) -> str | None:
        """The control token that `text` ends with, or ends with but for white space that the token swallows."""
        match = self._control_at_end.search(text, max(0, len(text) - self._longest))
        if match is None and self._swallowing:
            bare = text.rstrip()
            match = self._control_at_end.search(bare, max(0, len(bare) - self._longest))
            return match.group() if match and match.group() in self._swallowing else None
        return match.group() if match else None

    def count_control(self, text: str) -> int:
        """How many control tokens are written out in `text` (those that stand for ids of `control_ids`)."""
        return sum(self.control[match.group()] in self.control_ids for match in self._control.finditer(text))

    def places_inside_control(self, text: str) -> list[int]:
        """Where `text` must be cut so that no control token is left in it: after the first character of each.
        Overlapping ones too.
        """
        if not any(beginning in text for beginning in self._beginnings) or self.find_control(text) is None:
            return []
        return sorted(
            {match.start() + 1 for word in self.control for match in re.finditer(f"(?={re.escape(word)})", text)}
        )

    def completes_control(self, before: str, after: str) -> bool:
        """Whether a control token begins in one text and ends in the one that follows it."""
        tail = before[-self._longest :]
        if not any(beginning in tail for beginning in self._beginnings):
            return False
        match = self.find_control(tail + after[: self._longest])
        return match is not None and match.start() < len(tail) < match.end()

    def count_indivisible(self, text: str) -> int:
        """How many control tokens of one character are written out in `text`: they cannot be cut apart."""
        return sum(map(text.count, self._single))

    def encode(self, pieces: Sequence[Piece]) -> list[Ids]:
        """The ids of each piece. Equal ones are encoded once, and have one list of ids."""
        if self._fast is None:
            return [self._encode_slowly(piece) for piece in pieces]
        known: dict[tuple[str | None, str], Ids] = {(piece.after, piece.text): [] for piece in pieces}
        plain = [(key, key[0] + key[1]) for key in known if key[0] is not None]
        inner = [(key, key[1]) for key in known if key[0] is None]
        for backend, texts in ((self._fast, plain), (self._inner, inner)):
            encodings = (
                backend.encode_batch_fast([text for _, text in texts], add_special_tokens=False) if texts else []
            )
            for (key, _), encoding in zip(texts, encodings, strict=True):
                known[key] = self._behind(key[0], encoding.ids, key[1]) if key[0] else encoding.ids
        return [known[piece.after, piece.text] for piece in pieces]

    def _behind(self, after: str, ids: Ids, text: str) -> Ids:
        """The ids behind the control token `after` in those of both. A token that is one only between spaces
        (`single_word`) is none before a letter: then `text` is encoded as any other text in the middle.
        """
        if ids[:1] == [self.control[after]]:
            return ids[1:]
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def joints(self, pieces: Sequence[Piece]) -> list[Joint]:
        """What stands around each cut between ordinary characters at the edge of a turn; behind a control token every
        encoding starts anew.
        """
        out = []
        for left, right in pairwise(pieces):
            if right.after is not None or left.trained == right.trained:
                continue
            before, last = left.text[-JOINT_BEFORE:], 0
            while match := self.find_control(before, last):
                last = match.end()
            word = FIRST_WORD.match(right.text)
            out.append((before[last:], word.group() if word else right.text[:JOINT_AFTER]))
        return out

    def differ(self, joints: Iterable[Joint]) -> dict[Joint, bool]:
        """For each joint, whether its two sides encoded as one give other ids than encoded apart."""
        if len(self._known_joints) > KNOWN_JOINTS:
            self._known_joints.clear()
        asked = list(dict.fromkeys(joints))
        new = [joint for joint in asked if joint not in self._known_joints]
        ids = iter(self.encode([Piece(text, None) for a, b in new for text in (a + b, a, b)]))
        self._known_joints |= {joint: next(ids) != next(ids) + next(ids) for joint in new}
        return {joint: self._known_joints[joint] for joint in asked}

    def _encode_slowly(self, piece: Piece) -> Ids:
        """As `encode`, with a tokenizer in Python, which may put a space before every text that it is given."""
        if piece.after is None:
            return self._in_the_middle(piece.text)
        ids = list(self.tokenizer.encode(piece.after + piece.text, add_special_tokens=False))
        return ids[1:] if piece.after else ids

    def _in_the_middle(self, text: str) -> Ids:
        """The ids of `text` behind an ordinary character, without that character's. Raises UserError: none will do."""
        for anchor in ANCHORS:
            head = list(self.tokenizer.encode(anchor, add_special_tokens=False))
            ids = list(self.tokenizer.encode(anchor + text, add_special_tokens=False))
            if head and self.tokenizer.unk_token_id not in head and ids[: len(head)] == head:
                return ids[len(head) :]
        raise UserError(
            "tokenizer",
            f"{type(self.tokenizer).__name__} joins {excerpt(text, 40)} with whatever stands before it",
            "a tokenizer that can encode the parts of a text",
            "a tokenizer.json beside the model",
        )


def _backends(tokenizer: Any) -> tuple[Any, Any]:
    """The tokenizer's Rust object (None where it has none), and the same without spaces put before the text."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None, None
    state = json.loads(backend.to_str())
    drawn = bool(state["model"].get("dropout"))
    if drawn:
        state["model"]["dropout"] = None
    inner = _without_prefixes(state)
    if drawn or backend.truncation is not None or backend.padding is not None:
        # a file may carry them; ours must not cut and not draw lots, and theirs not change
        backend = Tokenizer.from_str(json.dumps(state))
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
