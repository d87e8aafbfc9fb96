"""Samples token by token, trained and untrained told apart, and lengths as bars: for the eye and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from luthier.types import NO_TARGET, Ints, Sample

TRAINED_STYLE = "bold green"
CONTEXT_STYLE = "dim"
SEPARATOR = "·"
BAR_CHARS = 40
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str
    """what the token adds to the text; the last one of a character that several tokens share has all of it"""
    trained: bool


def tokens_of(tokenizer: Any, sample: Sample) -> list[Token]:
    """The tokens of a sample. A token is trained when the position before it has it as its target."""
    ids = [int(index) for index in sample.input_ids]
    trained = [False, *(bool(target != NO_TARGET) for target in sample.targets[:-1])]
    out: list[Token] = []
    done, start = "", 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith(REPLACEMENT) and end < len(ids) and end - start < 64:
            out.append(Token(ids[end - 1], "", trained[end - 1]))  # the character goes on in the next token
            continue
        out.append(Token(ids[end - 1], text.removeprefix(done), trained[end - 1]))
        # decoders drop the space before the first word, so each piece is decoded behind the one before it
        done, start = (
            tokenizer.decode(ids[end - 1 : end], skip_special_tokens=False, clean_up_tokenization_spaces=False),
            end - 1,
        )
    return out


def token_view(tokens: Sequence[Token], colour: bool) -> Text:
    """One sample as text. In colour, trained tokens are green and the others dim; without, trained tokens stand in
    [brackets].

    Without colour, other tokens are told apart by `·`. Line ends are written as ↵. Tokens that make up one character
    together are shown as one.
    """
    out = Text(no_wrap=False)
    tokens = [token for token in tokens if token.text]
    for number, token in enumerate(tokens):
        words = token.text.replace("\n", "↵\n")
        if colour:
            out.append(words, style=TRAINED_STYLE if token.trained else CONTEXT_STYLE)
        elif token.trained:
            out.append(f"[{words}]")
        else:
            follows = number + 1 < len(tokens) and not tokens[number + 1].trained
            out.append(words + (SEPARATOR if follows and not words.endswith("\n") else ""))
    return out


def histogram(lengths: Ints, bars: int = 10) -> list[tuple[int, int, int]]:
    """(shortest, longest, count) of up to `bars` bins of equal width, in tokens."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // bars))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return [(int(edge), int(edge + width - 1), int(count)) for edge, count in zip(edges, counts, strict=False)]


def histogram_lines(lengths: Ints) -> list[str]:
    """The histogram as bars of text."""
    bins = histogram(lengths)
    most = max(count for _, _, count in bins)
    return [
        f"{low:>7,} to {high:>7,}  {'█' * -(-BAR_CHARS * count // most):<{BAR_CHARS}} {count:,}"
        for low, high, count in bins
    ]
