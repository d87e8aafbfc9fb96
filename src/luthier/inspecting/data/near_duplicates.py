"""Near duplicates: MinHash over n-grams of token ids, banded (LSH), every pair checked by its real Jaccard similarity.

All arithmetic is numpy over the memory-mapped ids, a stretch of rows at a time, so memory is a few dozen bytes a row beside
one stretch. The chance that a pair of similarity s becomes a candidate is 1 - (1 - s^4)^16: 0.99 at 0.7, 0.99999 at 0.9
(Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).

Libraries do the first half. Beside them (benchmarks/near_duplicates.py) this takes a tenth of datasketch's time and less than
rensa's, finds the same, and what it gives is checked: of their pairs three in four are not similar where rows share
sentences. With rensa's hashes in the place of ours it would take two thirds of the time: two seconds less for 100,000
rows, for which luthier needs no further package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from luthier.randomness import Bits, mix64
from luthier.types import Ints

Keys = Bits
Mask = npt.NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.uint64)

NGRAM = 3
"""Token ids of one n-gram."""
SIMILAR = 0.7
"""Jaccard similarity of their n-grams from which two rows are near duplicates."""
FEWEST_NGRAMS = 8
"""A row with fewer n-grams says too little to be like another."""
BANDS, HASHES_OF_A_BAND = 16, 4
BANDS_AT_A_TIME = 8
STRETCH_TOKENS = 1 << 19
"""Tokens that are hashed at a time: their arrays stay in the cache."""
MOST_PAIRS = 1_000_000
"""Candidates that are checked: bounds the time where very many rows are alike."""
SAMPLED_ROWS = 2_000
COMMON_ROWS = 10
PAIR_BITS = 20
"""An n-gram's hash keeps 44 bits beside the number of its pair: two of a pair's n-grams meet by chance once in 10^9 pairs."""


class TokenRows:
    """The rows of one or several sets of samples, numbered through.

    Args:
        sets: of each set the ids, [tokens], and where each row begins, [rows + 1].
    """

    def __init__(self, *sets: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> None:
        self.sets = sets
        self.first = np.cumsum([0, *(len(offsets) - 1 for _, offsets in sets)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def stretches(self, tokens: int = STRETCH_TOKENS) -> Iterator[tuple[int, Keys, Ints]]:
        """(number of the first row, ids, where each row begins in them), of about `tokens` tokens each."""
        for (ids, offsets), first in zip(self.sets, self.first, strict=False):
            start = 0
            while start < len(offsets) - 1:
                end = int(np.searchsorted(offsets, offsets[start] + tokens, side="right")) - 1
                end = min(max(end, start + 1), len(offsets) - 1)
                places = np.asarray(offsets[start : end + 1], dtype=np.int64)
                yield int(first) + start, np.asarray(ids[places[0] : places[-1]]).astype(np.uint64), places - places[0]
                start = end

    def take(self, rows: Ints) -> tuple[Keys, Ints]:
        """The ids of some rows, one after the other, and where each begins."""
        parts = []
        for row in rows:
            number = int(np.searchsorted(self.first, row, side="right")) - 1
            ids, offsets = self.sets[number]
            place = int(row - self.first[number])
            parts.append(np.asarray(ids[offsets[place] : offsets[place + 1]]))
        lengths = [len(part) for part in parts]
        return np.concatenate(parts).astype(np.uint64), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def row_keys(rows: TokenRows) -> Keys:
    """[rows] one 64-bit key of each row's ids in their order: equal rows have equal keys, others with 2^-64 of chance."""
    out = np.zeros(len(rows), dtype=np.uint64)
    for first, ids, offsets in rows.stretches():
        lengths = np.diff(offsets)
        place = np.arange(len(ids), dtype=np.uint64) - np.repeat(offsets[:-1], lengths).astype(np.uint64)
        scrambled = mix64(mix64(ids + np.uint64(1)) + place * np.uint64(0x9E3779B97F4A7C15))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(scrambled, dtype=np.uint64)])
        out[first : first + len(lengths)] = mix64(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64))
    return out


@dataclass(frozen=True)
class NearPairs:
    """Pairs of rows that are near duplicates of each other, and what was not looked at."""

    pairs: Ints
    """[pairs, 2], the smaller number first"""
    similarity: npt.NDArray[np.float64]
    """[pairs] Jaccard similarity of their n-grams"""
    rows_too_short: int
    candidates_left_out: int
    """candidates beyond MOST_PAIRS, which were not checked"""


def near_pairs(rows: TokenRows, wanted: Mask, similar: float = SIMILAR) -> NearPairs:
    """Near duplicates among the rows that are wanted.

    N-grams that more than half of the rows have (a template's, a common system text) do not count.

    Of the rows in one bucket of a band each is compared with the first and with the one before it, so that time grows
    with the rows and not with their square; groups of alike rows are still joined through these.
    """
    common = _common_ngrams(rows)
    candidates, short = np.zeros(0, dtype=np.int64), 0
    for start in range(0, BANDS, BANDS_AT_A_TIME):
        keys, known = _band_keys(rows, common, range(start, start + BANDS_AT_A_TIME))
        short = int((wanted & ~known).sum())
        chosen = np.flatnonzero(known & wanted)
        found = [_bucket_pairs(chosen, band[chosen], len(rows)) for band in keys]
        candidates = _distinct(np.concatenate([candidates, *found]))
    left_out = max(0, len(candidates) - MOST_PAIRS)
    candidates = candidates[:MOST_PAIRS]
    pairs = np.stack([candidates // max(len(rows), 1), candidates % max(len(rows), 1)], axis=1)
    similarity = jaccard(rows, pairs, common)
    near = similarity >= similar
    return NearPairs(pairs[near], similarity[near], short, left_out)


def _ngrams(ids: Keys, offsets: Ints, common: Keys) -> tuple[Keys, Ints]:
    """(hashes of all n-grams that count, the row of each, from 0)."""
    lengths = np.diff(offsets)
    total = max(len(ids) - NGRAM + 1, 0)
    hashes = np.zeros(total, dtype=np.uint64)
    for place in range(NGRAM):
        hashes = mix64(hashes + ids[place : place + total] + np.uint64(0x9E3779B97F4A7C15))
    row = np.repeat(np.arange(len(lengths)), lengths)[:total]
    inside = np.arange(total) + NGRAM <= offsets[1:][row]
    if len(common):
        nearest = np.minimum(common.searchsorted(hashes), len(common) - 1)
        inside &= common[nearest] != hashes
    return hashes[inside], row[inside]


def _common_ngrams(rows: TokenRows) -> Keys:
    """Sorted hashes of the n-grams that more than half of the rows have, by rows spread evenly over all."""
    none = np.zeros(0, dtype=np.uint64)
    if not len(rows):
        return none
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED_ROWS, len(rows))).astype(np.int64))
    hashes, row = _ngrams(*rows.take(chosen), none)
    distinct = _distinct(_labelled(row, hashes)) & np.uint64((1 << 44) - 1)
    found, counts = np.unique(distinct, return_counts=True)
    often = found[counts > max(COMMON_ROWS, len(chosen) / 2)]
    # `distinct` has 44 bits of each hash: the whole ones are those whose bits are among them.
    whole = _distinct(hashes)
    return whole[np.isin(whole >> np.uint64(PAIR_BITS), often)]


def _labelled(labels: Ints, hashes: Keys) -> Keys:
    """A label below 2^20 and 44 bits of a hash in one number, so that one plain sort groups them."""
    return (labels.astype(np.uint64) << np.uint64(64 - PAIR_BITS)) | (hashes >> np.uint64(PAIR_BITS))


def _distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Each value once, in order. numpy's `unique` fills a table of hashes first, which takes six times as long here."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _band_keys(rows: TokenRows, common: Keys, bands: range) -> tuple[list[Keys], Mask]:
    """(of each band one key a row, whether a row has enough n-grams to have one)."""
    keys = [np.zeros(len(rows), dtype=np.uint64) for _ in bands]
    known = np.zeros(len(rows), dtype=bool)
    for first, ids, offsets in rows.stretches():
        hashes, row = _ngrams(ids, offsets, common)
        counts = np.bincount(row, minlength=len(offsets) - 1)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[counts > 0]
        enough = (counts >= FEWEST_NGRAMS)[counts > 0]
        if not enough.any():
            continue
        places = first + np.flatnonzero(counts >= FEWEST_NGRAMS)
        known[places] = True
        for out, band in zip(keys, bands, strict=True):
            for number in range(HASHES_OF_A_BAND):
                salt = mix64(np.array([band * HASHES_OF_A_BAND + number + 1], dtype=np.uint64))
                smallest = np.minimum.reduceat((hashes ^ salt) * (salt | np.uint64(1)), starts)[enough]
                out[places] = mix64(out[places] + smallest)
    return keys, known


def _bucket_pairs(rows: Ints, keys: Keys, total: int) -> Ints:
    """Pairs (smaller * total + larger) of rows with one key: each with the first and with the one before it."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    sorted_rows = rows[order]
    member = np.flatnonzero(same) + 1
    begins = np.concatenate([[True], ~same]) if len(rows) else np.zeros(0, dtype=bool)
    first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
    pairs = np.concatenate([sorted_rows[first[member]] * total, sorted_rows[member - 1] * total])
    return _distinct(pairs + np.tile(sorted_rows[member], 2))


def jaccard(rows: TokenRows, pairs: Ints, common: Keys | None = None) -> npt.NDArray[np.float64]:
    """[pairs] |A and B| / |A or B| of the n-grams of each pair of rows, [pairs, 2]; 0 where neither has any."""
    common = np.zeros(0, dtype=np.uint64) if common is None else common
    out = np.zeros(len(pairs))
    for start in range(0, len(pairs), 1 << 14):
        part = pairs[start : start + (1 << 14)]
        chosen, place = np.unique(part, return_inverse=True)
        hashes, row = _ngrams(*rows.take(chosen), common)
        sets = _distinct(_labelled(row, hashes))
        edges = np.searchsorted(sets, np.arange(len(chosen) + 1, dtype=np.uint64) << np.uint64(64 - PAIR_BITS))
        sizes = np.diff(edges)
        sides = []
        for side in place.reshape(part.shape).T:
            label, inside = _expanded(sizes[side])
            bits = sets[edges[side][label] + inside] << np.uint64(PAIR_BITS)
            sides.append(_labelled(label, bits))
        both = np.sort(np.concatenate(sides))
        shared = both[1:][both[1:] == both[:-1]] >> np.uint64(64 - PAIR_BITS)
        common_count = np.bincount(shared.astype(np.int64), minlength=len(part))
        union = sizes[place.reshape(part.shape)].sum(1) - common_count
        out[start : start + len(part)] = common_count / np.maximum(union, 1)
    return out


def _expanded(counts: Ints) -> tuple[Ints, Ints]:
    """[2, 1] -> (labels [0, 0, 1], places inside [0, 1, 0])."""
    label = np.repeat(np.arange(len(counts)), counts)
    return label, np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)


def joined(pairs: Ints) -> list[list[int]]:
    """The groups of rows that pairs join, each sorted, by their first row."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in pairs.tolist():
        a, b = sorted((root(one), root(other)))
        parent[b] = a
    groups: dict[int, list[int]] = {}
    for row in sorted(parent):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def grouped(keys: Keys, most: int | None = None) -> tuple[list[Ints], int, int]:
    """Rows with equal keys: (the groups of two and more by their first row, at most `most`; groups; rows in them)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])) if len(keys) else np.zeros(1, int)
    )
    starts, ends = edges[:-1], edges[1:]
    several = ends - starts > 1
    starts, ends = starts[several], ends[several]
    firsts = np.argsort(order[starts], kind="stable")
    groups = [order[starts[at] : ends[at]] for at in firsts[:most]]
    return groups, len(starts), int((ends - starts).sum())
