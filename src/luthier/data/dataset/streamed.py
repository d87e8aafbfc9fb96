"""Samples that are kept nowhere: encoded once to be counted and checked, and again whenever they are asked for.

So the data may be larger than the disk has room for twice. Neighbours are read and encoded together; the order of the
data (`data/steps/order.py`) asks for them together.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from luthier.data.dataset.samples import DTYPES, FINGERPRINTED, OF_SAMPLES, SampleSet, combined
from luthier.data.dataset.workers import Chunk, Encoding
from luthier.data.files import Source
from luthier.data.recognise import Purpose, RowParser
from luthier.data.steps.order import BLOCKS_OF_A_WINDOW
from luthier.errors import UserError
from luthier.types import Sample

KEPT_CHUNKS = 4 * BLOCKS_OF_A_WINDOW
"""Encoded chunks that are kept in memory: those of a window, also where many rows of a chunk were dropped. And two more of
each file, for in a mixture a window has rows of all.
"""
COUNTED = (*OF_SAMPLES, "first_samples", "prompt_keys", "row_lines")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a chunk stand."""

    source: Source
    parser: RowParser | None
    purpose: Purpose
    start: int
    """records of the file that come before"""
    rows: int
    """records of the chunk"""
    first: int
    """index of its first sample"""


class StreamedSamples(SampleSet):
    """Built by a `Counter` from the chunks of one pass."""

    def __init__(
        self, encoding: Encoding, purpose: str, places: list[Place], arrays: dict[str, Any], fingerprint: str
    ) -> None:
        self._encoding = encoding
        self._purpose = purpose
        self._places = places
        self._starts = [place.first for place in places]
        self._fingerprint = fingerprint
        self._most_kept = KEPT_CHUNKS + 2 * len({place.source.name for place in places})
        self._kept: OrderedDict[int, list[Sample]] = OrderedDict()
        self.lengths, self.trained, self.groups, self.roles, self.shared = (arrays[name] for name in OF_SAMPLES)
        self.first_samples, self.prompt_keys = arrays["first_samples"], arrays["prompt_keys"]
        self.row_lines = arrays["row_lines"]
        in_chunks = np.diff([*np.searchsorted(self.first_samples, self._starts), self.examples])
        self.neighbours = int(in_chunks.max())

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def row(self, example: int) -> str:
        return self.at(int(self.first_samples[example])).row

    def at(self, index: int) -> Sample:
        """The sample; its chunk is encoded if it is none of those that were asked for last.

        Raises:
            UserError: the file changed since the run began.
        """
        number = bisect.bisect_right(self._starts, index) - 1
        if number not in self._kept:
            self._kept[number] = self._encoded(self._places[number])
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        inside = index - self._starts[number]
        sample = self._kept[number][inside] if inside < len(self._kept[number]) else None
        if sample is None or len(sample) != self.lengths[index]:
            raise UserError(
                self._places[number].source.name,
                "the file changed since the run began",
                "the same rows until the end of the run",
                "start the run again",
            )
        return replace(sample, example=self.example_of(index))  # its own is its place in the chunk

    def _encoded(self, place: Place) -> list[Sample]:
        rows = list(islice(place.source.rows(place.start), place.rows))
        return self._encoding.chunk(rows, place.parser, place.purpose).sets[self._purpose].samples


class Counter:
    """Takes the chunks of the one pass in their order and keeps what `StreamedSamples` of one purpose needs."""

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose
        self._places: list[Place] = []
        self._counted: dict[str, list[Any]] = {name: [] for name in COUNTED}
        self._digests = {name: hashlib.sha256() for name in FINGERPRINTED}
        self._samples = 0

    def add(self, chunk: Chunk, source: Source, parser: RowParser | None, purpose: Purpose, start: int) -> None:
        """`start`: how many records of the source come before the chunk; `purpose`: what the source is for."""
        encoded = chunk.sets[self.purpose]
        if not len(encoded):
            return
        self._places.append(Place(source, parser, purpose, start, chunk.ledger.rows_in, self._samples))
        arrays = encoded.arrays(before=self._samples)
        for name in COUNTED:
            self._counted[name].append(arrays[name])
        for name, digest in self._digests.items():
            digest.update(np.ascontiguousarray(arrays[name]).data)
        self._samples += len(encoded)

    def samples(self, encoding: Encoding) -> StreamedSamples | None:
        """What was counted; None where no sample has this purpose."""
        if not self._samples:
            return None
        arrays = {name: _joined(name, parts) for name, parts in self._counted.items()}
        return StreamedSamples(encoding, self.purpose, self._places, arrays, combined(self._digests.values()))


def _joined(name: str, parts: Iterable[Any]) -> Any:
    return np.concatenate(list(parts)).astype(DTYPES[name])
