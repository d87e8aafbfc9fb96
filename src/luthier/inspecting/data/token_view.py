"""Samples token by token, and lengths as bars: for the eye and for programs.

What is trained, what the row brings as context, what the template writes and special tokens are told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from rich.text import Text

from luthier.data.chat.tools import END_OF_THOUGHT
from luthier.types import NO_TARGET, Ints, Sample

Look = Literal["trained", "context", "template", "special"]

STYLES: dict[Look, str] = {"trained": "bold green", "context": "", "template": "dim", "special": "magenta"}
MARKS: dict[Look, tuple[str, str]] = {
    "trained": ("[", "]"),
    "context": ("", ""),
    "template": ("{", "}"),
    "special": ("", ""),
}
"""Around each trained token, and around each run of the template's, where there is no colour."""
LEGEND_IN_COLOUR = "green: trained; plain: context; dim: template; magenta: special"
LEGEND_IN_MARKS = "[trained]  context  {template}  <special>"
INSTEAD = "≠"
"""Before a token that is learned in a place where another one stands."""
LEGEND_OF_INSTEAD = f"{INSTEAD}x: x is learned where another token stands, the one that follows"
SHARED = "×"
"""Behind what several tokens make up together, and how many."""
LEGEND_OF_SHARED = f"x{SHARED}3: 3 tokens make up x"
SEPARATOR = "·"
CUT_CHARS = 8
"""By so many characters the beginning of a text is found again that was cut."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Instead:
    """A target that is not the next input id."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str
    """what the token adds to the text; the last one of a character that several tokens share has all of it"""
    trained: bool
    """it is what the position before it has as its target"""
    kind: Literal["content", "template", "special"] = "content"
    """who brought it: the row, the template, or it is a special token"""
    instead: Instead | None = None
    """what is learned in its place, where that is another token: an end token that stands only in the targets"""
    shares: int = 1
    """how many tokens make up its text, with those before it that have none"""

    @property
    def look(self) -> Look:
        return "trained" if self.trained else "context" if self.kind == "content" else self.kind


def tokens_of(
    tokenizer: Any,
    sample: Sample,
    contents: Sequence[str] | None = None,
    special: Collection[int] = (),
    asides: Sequence[str] = (),
) -> list[Token]:
    """The tokens of a sample. A token is trained where the position before it has it as its target; where that has another
    one, that is said.

    Args:
        contents: the texts that the row brings, in their order; without them nothing is known to be the template's.
        special: ids of special tokens.
        asides: other texts that the row brings, in no order; those that stand there as they are count.
    """
    ids = [int(index) for index in sample.input_ids]
    targets = [NO_TARGET, *map(int, sample.targets[:-1])]
    pieces = _pieces(tokenizer, ids)
    texts = [text for text, _ in pieces]
    brought = _spans("".join(texts), contents, asides)
    out, place = [], 0
    for index, (text, shares), target in zip(ids, pieces, targets, strict=True):
        kind: Literal["content", "template", "special"] = "content"
        if index in special:
            kind = "special"
        elif brought is not None and not any(start < place + len(text) and place < end for start, end in brought):
            kind = "template"
        instead = None if target in (NO_TARGET, index) else Instead(target, _decoded(tokenizer, [target]))
        out.append(Token(index, text, target == index, kind, instead, shares))
        place += len(text)
    return out


def texts_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of all."""
    return [text for text, _ in _pieces(tokenizer, ids)]


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, int]]:
    """What each token adds to the text of all, and how many tokens make that up."""
    out: list[tuple[str, int]] = []
    done, start, waiting = "", 0, 0
    for end in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[start:end])
        if text.endswith(REPLACEMENT) and end < len(ids) and end - start < 64:
            out.append(("", 1))  # the character goes on in the next token
            waiting += 1
            continue
        if not text.startswith(done) and text.startswith(f" {done}"):
            text = text[1:]  # decoders of SentencePiece put a space before the first word where a special token follows
        out.append((text.removeprefix(done), 1 + waiting))
        waiting = 0
        # decoders drop the space before the first word, so each piece is decoded behind the one before it
        done, start = _decoded(tokenizer, ids[end - 1 : end]), end - 1
    return out


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _spans(text: str, contents: Sequence[str] | None, asides: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where the row's own texts stand in the rendered one; None where none of them does.

    A text may be missing: a sample has one answer of several, and templates leave out old thoughts. One that begins at the
    end was cut.
    """
    if contents is None:
        return None
    spans: list[tuple[int, int]] = []
    place = 0
    for content in contents:
        forms = (content, content.strip(), content.rpartition(END_OF_THOUGHT)[2].strip())
        found = next((part for part in forms if part and text.find(part, place) >= 0), None)
        if found is not None:
            start = text.find(found, place)
            place = start + len(found)
            spans.append((start, place))
            continue
        start = text.find(content[:CUT_CHARS], place) if content else -1
        if start >= 0 and content.startswith(text[start:]):
            spans.append((start, len(text)))
            break
    if not spans and any(contents):
        return None
    return spans + [(start, start + len(aside)) for aside in asides if (start := text.find(aside)) >= 0]


def token_view(tokens: Sequence[Token], colour: bool) -> Text:
    """One sample as text. In colour, the four looks have the styles of STYLES; without, the marks of MARKS.

    Without colour, tokens are told apart by `·`. Line ends are written as ↵. Tokens that make up one character
    together are shown as one, with their number behind it.
    """
    out = Text(no_wrap=False)
    tokens = [token for token in tokens if token.text or token.instead]
    if colour:
        for token in tokens:
            if token.instead is not None:
                out.append(INSTEAD + token.instead.text, style=STYLES["trained"])
            out.append(token.text.replace("\n", "↵\n"), style=STYLES[token.look])
            out.append(_shares(token), style="dim")
        return out
    runs = [(look, list(run)) for look, run in groupby(tokens, key=lambda token: token.look)]
    for number, (look, run) in enumerate(runs):
        before, after = MARKS[look]
        if look == "trained":
            out.append("".join(f"{before}{_shown(token)}{after}" for token in run))
            continue
        words = _marked(run[0])
        for token in run[1:]:
            words += ("" if words.endswith("\n") else SEPARATOR) + _marked(token)
        plain_follows = look != "template" and number + 1 < len(runs) and runs[number + 1][0] in ("context", "special")
        out.append(before + words + after + (SEPARATOR if plain_follows and not words.endswith("\n") else ""))
    return out


def _marked(token: Token) -> str:
    """A token that is not trained, behind what is learned in its place."""
    return (f"[{INSTEAD}{token.instead.text}]" if token.instead else "") + _shown(token)


def _shown(token: Token) -> str:
    return token.text.replace("\n", "↵\n") + _shares(token)


def _shares(token: Token) -> str:
    return f"{SHARED}{token.shares}" if token.shares > 1 and token.text else ""


def histogram(lengths: Ints, bars: int = 10) -> list[tuple[int, int, int]]:
    """(shortest, longest, count) of up to `bars` bins of equal width, in tokens."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // bars))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return [(int(edge), int(edge + width - 1), int(count)) for edge, count in zip(edges, counts, strict=False)]
