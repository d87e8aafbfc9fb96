"""Rows that stand in the data more than once, or in the training and the held-out rows at the same time.

Four degrees: exact (the same token ids), normalised (the same text where case, width, spaces and . , ; : ! ? — quotes
and brackets do not count), near (inspecting/data/near_duplicates.py), and conflicts: the same prompt with different answers.

Rows are compared whole, with all samples that they gave; what was asked is the prompt of the last one.
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
    "near_conflicts": "nearly the same prompt, but for case, width, spaces and punctuation, with another answer",
    "prompt": "the same prompt with another answer",
    "near_prompt": "nearly the same prompt, but for case, width, spaces and punctuation, with another answer",
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
ODD = 0x9E3779B97F4A7C15
"""Tells a sample's key from the same key at another place of its example."""
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
    """What decides whether rows are equal. Each is [examples] uint64."""

    exact: Keys
    """of the token ids"""
    text: Keys
    """of the normalised text"""
    prompt: Keys
    """of the normalised text before the last answer; 0 where nothing stands before it"""
    letters: Keys
    """of the prompt to the letter; 0 where there is none"""
    compared: Mask
    """whether the example is looked at: a row that was drawn twice is not compared with itself"""


def keys_of(samples: Samples, decode: Decode) -> RowKeys:
    """The keys of all examples: one pass over the ids, and one that decodes them."""
    ids, targets, offsets = samples.arrays
    text, prompt = np.zeros(len(samples), dtype=np.uint64), np.zeros(len(samples), dtype=np.uint64)
    for first in range(0, len(samples), ROWS_AT_A_TIME):
        edges = np.asarray(offsets[first : first + ROWS_AT_A_TIME + 1], dtype=np.int64)
        part, starts = (
            np.asarray(ids[edges[0] : edges[-1]]),
            answer_starts(np.asarray(targets[edges[0] : edges[-1]]), edges),
        )
        places = edges - edges[0]
        prompt_ids = [part[a:b].tolist() for a, b in zip(places[:-1], places[:-1] + starts, strict=True)]
        answer_ids = [part[a:b].tolist() for a, b in zip(places[:-1] + starts, places[1:], strict=True)]
        texts = [normalised(one) for one in decode([*prompt_ids, *answer_ids])]
        before, answers = texts[: len(prompt_ids)], texts[len(prompt_ids) :]
        end = first + len(prompt_ids)
        text[first:end] = [text_key(f"{one} {answer}") for one, answer in zip(before, answers, strict=True)]
        prompt[first:end] = [text_key(one) if one.strip() else 0 for one in before]
    prompt = prompt[samples.last_samples]
    return RowKeys(
        exact=_of_examples(row_keys(TokenRows((ids, offsets))), samples),
        text=_of_examples(text, samples),
        prompt=prompt,
        letters=np.where(prompt != 0, samples.prompt_keys, np.uint64(0)),
        compared=last_of_rows(samples),
    )


def _of_examples(keys: Keys, samples: Samples) -> Keys:
    """[samples] -> [examples]: one key of the samples of each in their order; of a single one its own."""
    if samples.examples == len(samples):
        return keys
    place = np.arange(len(keys)) - np.repeat(samples.first_samples, samples.last_samples - samples.first_samples + 1)
    return np.add.reduceat(keys * np.power(np.uint64(ODD), place.astype(np.uint64)), samples.first_samples)


def last_of_rows(samples: Samples) -> Mask:
    """[examples] whether the next one is another row. A row that was drawn several times follows itself."""
    names = row_keys(TokenRows(samples.row_names))
    return np.append(names[1:] != names[:-1], np.True_)


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
    """indices of examples, at most MOST_GROUPS groups, each with its first MOST_GROUPS rows"""
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
    """(held-out example, training example), at most MOST_GROUPS"""
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
    near_conflicts: Groups
    """of each prompt one row"""
    overlap: dict[str, Pairs]
    """exact, normalised, near, prompt and near_prompt (the same question, another answer); empty where nothing is held out"""
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
    rows = TokenRows(*(_whole_rows(samples) for samples in (train, held_out) if samples is not None))
    both = [one for one in (keys, other) if one is not None]
    texts, compared = np.concatenate([one.text for one in both]), np.concatenate([one.compared for one in both])
    near = near_pairs(rows, _firsts(texts, compared))
    inside = near.pairs[near.pairs[:, 1] < train.examples]
    across = near.pairs[(near.pairs[:, 0] < train.examples) & (near.pairs[:, 1] >= train.examples)]
    groups = joined(inside)
    return Duplicates(
        exact=_groups(keys.exact, keys.compared),
        normalised=_groups(keys.text, _firsts(keys.exact, keys.compared)),
        near=Groups([group[:MOST_GROUPS] for group in groups[:MOST_GROUPS]], len(groups), sum(map(len, groups))),
        conflicts=_groups(keys.letters, differing := _differing(keys)),
        near_conflicts=_groups(keys.prompt, _firsts(keys.letters, differing)),
        overlap=_overlap(keys, other, across - np.array([0, train.examples])) if other is not None else {},
        rows_too_short=near.rows_too_short,
        candidates_left_out=near.candidates_left_out,
    )


def _whole_rows(samples: Samples) -> tuple[Ints, Ints]:
    """The ids of all examples, and where each begins, [examples + 1]."""
    ids, _, offsets = samples.arrays
    return ids, np.append(offsets[samples.first_samples], offsets[-1])


def _firsts(keys: Keys, wanted: Mask) -> Mask:
    """[examples] whether one is the first of those that are wanted with its key."""
    places, out = np.flatnonzero(wanted), np.zeros(len(keys), dtype=bool)
    out[places[np.unique(keys[places], return_index=True)[1]]] = True
    return out


def _groups(keys: Keys, wanted: Mask) -> Groups:
    places = np.flatnonzero(wanted)
    listed, groups, rows = grouped(keys[places], MOST_GROUPS)
    return Groups([places[group[:MOST_GROUPS]].tolist() for group in listed], groups, rows)


def _differing(keys: RowKeys) -> Mask:
    """[examples] one row of each text that has a prompt: of those with one prompt the answers differ. Alternatives of one row are
    meant."""
    out: Mask = _firsts(keys.text, keys.compared) & (keys.prompt != 0)
    return out


def _overlap(train: RowKeys, held_out: RowKeys, near: Ints) -> dict[str, Pairs]:
    """Each held-out row at the first degree at which the training data have it; `near`: as `_equal` gives pairs."""
    found: dict[str, Pairs] = {}
    left = held_out.compared.copy()
    for degree, pairs in {
        "exact": _equal(train.exact, held_out.exact),
        "normalised": _equal(train.text, held_out.text),
        "near": near,
        "prompt": _equal(train.letters, held_out.letters),
        "near_prompt": _equal(train.prompt, held_out.prompt),
    }.items():
        new = pairs[left[pairs[:, 1]]]
        rows, first = np.unique(new[:, 1], return_index=True)
        left[rows] = False
        found[degree] = Pairs([(row, ours) for ours, row in new[first[:MOST_GROUPS]].tolist()], len(rows))
    return found


def _equal(train: Keys, held_out: Keys) -> Ints:
    """[pairs, 2]: each held-out example that has a key of a training example, behind the first of those; 0 is no key."""
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
