"""Rows that stand in the data more than once, or in the training and the held-out rows at the same time.

Four degrees: exact (the same token ids), normalised (the same text where case, width, spaces and . , ; : ! ? — quotes
and brackets do not count), near (inspecting/data/near_duplicates.py), and conflicts: the same prompt with different answers.

Rows are compared by their last sample. Where a row has several, one for each answer, the last has all of the row.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.dataset.samples import Samples
from luthier.inspecting.data.near_duplicates import Keys, Mask, TokenRows, grouped, joined, near_pairs, row_keys
from luthier.types import NO_TARGET, Ints

SAYS = {
    "exact": "the same tokens",
    "normalised": "the same but for case, width, spaces and punctuation",
    "near": "nearly the same: seven tenths of their three-token runs are shared",
    "conflicts": "the same prompt with another answer",
    "prompt": "the same prompt with another answer",
}
"""What each degree means; the words of every report."""
DUPLICATES = "rows beyond the first of each group, each counted at the first degree that holds"
CONFLICTS = "prompts that have more than one answer"
OVERLAP = (
    "held-out rows that are also trained, each counted at the first degree that holds: their loss is no fair measure"
)
"""What is counted."""
MOST_GROUPS = 1_000
"""Groups and pairs that are listed; the counts are always of all."""
ROWS_AT_A_TIME = 2_048
NOT_COUNTED = str.maketrans(dict.fromkeys(".,;:!?\"'`´’‘“”«»„()[]{}、。，；：！？「」『』【】…—", " "))

Decode = Callable[[list[list[int]]], list[str]]
"""Token ids of several rows -> their texts, without special tokens."""


def normalised(text: str) -> str:
    """The text folded: width and compatibility forms (NFKC), case, and runs of spaces and punctuation to one space.

    Signs that carry meaning in numbers and code (+ - * / = < > % _ and so on) stay. A text of nothing else is kept whole.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    folded = " ".join(folded.translate(NOT_COUNTED).split())
    return folded or text


def text_key(folded: str) -> int:
    """64 bits of a text; never 0."""
    digest = hashlib.blake2b(folded.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


@dataclass(frozen=True)
class RowKeys:
    """What decides whether rows are equal. Each is [samples] uint64."""

    exact: Keys
    """of the token ids"""
    text: Keys
    """of the normalised text"""
    prompt: Keys
    """of the normalised text before the last answer; 0 where nothing stands before it"""
    last: Mask
    """the last sample of its row: the others are not looked at, nor is a row that was drawn twice compared with itself"""


def keys_of(samples: Samples, decode: Decode) -> RowKeys:
    """The keys of all samples: one pass over the ids, and one that decodes them."""
    ids, targets, offsets, _ = samples.arrays
    text, prompt = np.zeros(len(samples), dtype=np.uint64), np.zeros(len(samples), dtype=np.uint64)
    for first in range(0, len(samples), ROWS_AT_A_TIME):
        edges = np.asarray(offsets[first : first + ROWS_AT_A_TIME + 1], dtype=np.int64)
        part, starts = (
            np.asarray(ids[edges[0] : edges[-1]]),
            answer_starts(np.asarray(targets[edges[0] : edges[-1]]), edges),
        )
        places = edges - edges[0]
        asked = [part[a:b].tolist() for a, b in zip(places[:-1], places[:-1] + starts, strict=True)]
        said = [part[a:b].tolist() for a, b in zip(places[:-1] + starts, places[1:], strict=True)]
        texts = [normalised(one) for one in decode([*asked, *said])]
        before, answers = texts[: len(asked)], texts[len(asked) :]
        end = first + len(asked)
        text[first:end] = [text_key(f"{one} {answer}") for one, answer in zip(before, answers, strict=True)]
        prompt[first:end] = [text_key(one) if one.strip() else 0 for one in before]
    return RowKeys(row_keys(TokenRows((ids, offsets))), text, prompt, last_of_rows(samples))


def last_of_rows(samples: Samples) -> Mask:
    """[samples] whether the next sample is of another row. A row that was drawn several times follows itself."""
    names, groups = row_keys(TokenRows(samples.row_names)), np.asarray(samples.groups)
    return np.append((names[1:] != names[:-1]) & (groups[1:] != groups[:-1]), np.True_)


def answer_starts(targets: Ints, edges: Ints) -> Ints:
    """[rows] how many ids of each row stand before its last trained span; 0 where its first id is already trained for.

    Args:
        targets: of several rows, one after the other, [tokens].
        edges: where each row begins, [rows + 1]; `edges[0]` need not be 0.
    """
    places = edges - edges[0]
    trained = targets != NO_TARGET
    begins = trained & ~np.concatenate([[False], trained[:-1]])
    begins[places[:-1]] = trained[places[:-1]]
    last = np.maximum.reduceat(np.where(begins, np.arange(len(targets)), -1), places[:-1])
    inside = last - places[:-1]
    return np.where(inside > 0, inside + 1, 0)


@dataclass(frozen=True)
class Groups:
    """Rows of the training data that belong together."""

    listed: list[list[int]]
    """indices of samples, at most MOST_GROUPS groups, each with its first MOST_GROUPS rows"""
    groups: int
    rows: int
    """in all groups"""

    @property
    def extra(self) -> int:
        """Rows beyond the first of each group."""
        return self.rows - self.groups


@dataclass(frozen=True)
class Pairs:
    """Held-out rows that the training data have too."""

    listed: list[tuple[int, int]]
    """(held-out sample, training sample), at most MOST_GROUPS"""
    rows: int
    """held-out rows, each counted once"""


@dataclass(frozen=True)
class Duplicates:
    """What was found. A pair is counted at its first degree only: normalised groups hold more than one exact row, and
    near ones more than one normalised row."""

    exact: Groups
    normalised: Groups
    near: Groups
    conflicts: Groups
    overlap: dict[str, Pairs]
    """exact, normalised, near, prompt (the same question, another answer); empty where nothing is held out"""
    rows_too_short: int
    """for near duplicates to be looked for"""
    candidates_left_out: int
    """pairs that may be near duplicates and were not checked, as there were too many"""


def find_duplicates(train: Samples, held_out: Samples | None, decode: Decode) -> Duplicates:
    """Duplicates among the training rows, and held-out rows that are trained on too.

    Args:
        decode: `tokenizer.batch_decode` without special tokens, or the like.
    """
    keys = keys_of(train, decode)
    other = keys_of(held_out, decode) if held_out is not None else None
    sets = [samples.arrays for samples in (train, held_out) if samples is not None]
    rows = TokenRows(*((ids, offsets) for ids, _, offsets, _ in sets))
    both = [one for one in (keys, other) if one is not None]
    texts, last = np.concatenate([one.text for one in both]), np.concatenate([one.last for one in both])
    near = near_pairs(rows, _firsts(texts, last))
    inside = near.pairs[near.pairs[:, 1] < len(train)]
    across = near.pairs[(near.pairs[:, 0] < len(train)) & (near.pairs[:, 1] >= len(train))]
    groups = joined(inside)
    return Duplicates(
        exact=_groups(keys.exact, keys.last),
        normalised=_groups(keys.text, _firsts(keys.exact, keys.last)),
        near=Groups([group[:MOST_GROUPS] for group in groups[:MOST_GROUPS]], len(groups), sum(map(len, groups))),
        conflicts=_conflicts(keys),
        overlap=_overlap(keys, other, across - np.array([0, len(train)])) if other is not None else {},
        rows_too_short=near.rows_too_short,
        candidates_left_out=near.candidates_left_out,
    )


def _firsts(keys: Keys, wanted: Mask) -> Mask:
    """[samples] whether a sample is the first of those that are wanted with its key."""
    places, out = np.flatnonzero(wanted), np.zeros(len(keys), dtype=bool)
    out[places[np.unique(keys[places], return_index=True)[1]]] = True
    return out


def _groups(keys: Keys, wanted: Mask) -> Groups:
    places = np.flatnonzero(wanted)
    listed, groups, rows = grouped(keys[places], MOST_GROUPS)
    return Groups([places[group[:MOST_GROUPS]].tolist() for group in listed], groups, rows)


def _conflicts(keys: RowKeys) -> Groups:
    """Groups of rows with one prompt and at least two texts, one row of each text; alternatives of one row are meant."""
    return _groups(keys.prompt, _firsts(keys.text, keys.last) & (keys.prompt != 0))


def _overlap(train: RowKeys, held_out: RowKeys, near: Ints) -> dict[str, Pairs]:
    """Each held-out row at the first degree at which the training data have it; `near`: as `_equal` gives pairs."""
    found: dict[str, Pairs] = {}
    left = held_out.last.copy()
    for degree, pairs in {
        "exact": _equal(train.exact, held_out.exact),
        "normalised": _equal(train.text, held_out.text),
        "near": near,
        "prompt": _equal(train.prompt, held_out.prompt),
    }.items():
        new = pairs[left[pairs[:, 1]]]
        rows, first = np.unique(new[:, 1], return_index=True)
        left[rows] = False
        found[degree] = Pairs([(row, ours) for ours, row in new[first[:MOST_GROUPS]].tolist()], len(rows))
    return found


def _equal(train: Keys, held_out: Keys) -> Ints:
    """[pairs, 2]: each held-out sample that has a key of a training sample, behind the first of those; 0 is no key."""
    keys, first = np.unique(train, return_index=True)
    at = np.minimum(np.searchsorted(keys, held_out), len(keys) - 1)
    hit = np.flatnonzero((keys[at] == held_out) & (held_out != 0))
    return np.stack([first[at[hit]], hit], axis=1)


def decoder(tokenizer: Any) -> Decode:
    """Decodes many rows at once, by the tokenizer's own threads where it has any."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda rows: list(backend.decode_batch(rows, skip_special_tokens=True))
    return lambda rows: [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
