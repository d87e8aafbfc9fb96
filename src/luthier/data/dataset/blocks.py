"""Texts in blocks: what continued pretraining learns from, cut out of the encoded rows as it is asked for.

So the encoded rows do not depend on the size of a block, and no token is stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from luthier.data.dataset.samples import SampleSet
from luthier.errors import UserError
from luthier.system.words import counted
from luthier.types import Ints, Pieces, Sample

USUAL_SIZE = 2048
"""Tokens of a block at most, where nobody says."""


class Blocks(SampleSet):
    """Of each stream of tokens (texts one after the other, or each by itself) blocks of so many, one an example.

    Position i of a stream is trained to predict token i + 1, also where that begins the next block. So a block has as many trained
    tokens as tokens, and the last token of a stream stands in none: nothing comes behind it.
    """

    def __init__(self, whole: SampleSet, size: int, joined: bool, edges: Sequence[int] = (0,)) -> None:
        """
        Args:
            size: tokens of a block.
            joined: whether texts stand one after the other.
            edges: the first example of each source; no block has texts of two.
        """
        self._whole = whole
        self.size, self._joined = size, joined
        self._starts = np.concatenate([[0], np.cumsum(whole.lengths)])
        """[rows + 1] where each text begins among all tokens"""
        sources = self._starts[whole.first_samples[list(edges)]]
        first = sources if joined else self._starts[:-1]
        self._streams = frozenset(first.tolist())
        """where each begins among all tokens"""
        last = np.append(first[1:], self._starts[-1]) - 1
        counts = np.maximum(0, -(-(last - first) // self.size))
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self._begins = np.repeat(first, counts) + inside * self.size
        self._edges = [*np.searchsorted(self._begins, sources).tolist(), len(self._begins)]
        self.lengths = np.minimum(self._begins + self.size, np.repeat(last, counts)) - self._begins
        self.trained = self.lengths
        self.groups = self.roles = self.shared = np.zeros(len(self.lengths), dtype=np.int64)
        self.first_samples = np.arange(len(self.lengths))
        self._rows = np.searchsorted(self._starts, self._begins, side="right") - 1
        """[blocks] the text that each begins in"""
        if whole.neighbours is not None:  # of about as many texts
            self.neighbours = max(1, whole.neighbours * len(self.lengths) // len(whole))
        self.prompt_keys, self.row_lines = whole.prompt_keys[self._rows], whole.row_lines[self._rows]

    @property
    def fingerprint(self) -> str:
        how = "joined" if self._joined else "apart"
        return f"blocks of {self.size}, {how}, {self._edges} of {self._whole.fingerprint}"

    @property
    def by_source(self) -> tuple[int, ...]:
        """Blocks of each source."""
        return tuple(int(count) for count in np.diff(self._edges))

    def rows_of(self, block: int) -> range:
        """The texts that a block has tokens of, by their places."""
        last = np.searchsorted(self._starts, self._begins[block] + self.lengths[block] - 1, side="right")
        return range(int(self._rows[block]), int(last))

    def blocks_of(self, row: int) -> range:
        """The blocks that have tokens of a text."""
        last = np.searchsorted(self._begins, self._starts[row + 1], side="left")
        first = np.searchsorted(self._begins + self.lengths, self._starts[row], side="right")
        return range(int(first), int(last))

    def follows(self, row: int) -> bool:
        """Whether a text stands before this one in its stream, so that its first token is learned too."""
        return int(self._starts[row]) not in self._streams

    def row(self, example: int) -> str:
        """That of the first of its texts."""
        return self._whole.row(int(self._rows[example]))

    def place(self, example: int) -> str:
        """The first of its texts; of several also the last."""
        rows = self.rows_of(example)
        names = [self._whole.place(row) for row in (rows[0], rows[-1])]
        return names[0] if len(rows) == 1 else f"{names[0]} to {names[1]} ({len(rows):,} rows)"

    def at(self, index: int) -> Sample:
        begin = int(self._begins[index])
        end, parts = begin + int(self.lengths[index]) + 1, list[Ints]()
        row = int(self._rows[index])
        while begin < end:
            start = int(self._starts[row])
            parts.append(self._whole.ids(row, begin - start, end - start))
            begin, row = int(self._starts[row + 1]), row + 1
        ids = np.concatenate(parts)
        return Sample(ids[:-1], ids[1:], self.row(index), index)

    def says(self) -> str:
        """What they are, in a line."""
        shortest, most = int(self.lengths.min()), max(len(self.rows_of(block)) for block in self._sampled())
        sizes = f"of {self.size:,} tokens" + (f", the shortest of {shortest:,}" if shortest < self.size else "")
        if not self._joined:
            return f"texts apart: {counted(len(self), 'example')}, each at most {sizes}"
        return f"blocks: {counted(len(self), 'block')} {sizes}; up to {counted(most, 'text')} in one"

    def _sampled(self) -> range:
        return range(0, len(self), max(1, len(self) // 1000))


def size_of_block(pieces: Pieces, max_length: int | None, fits: int | None) -> int:
    """Tokens of a block: as they are asked for, else what fits, but no more than is usual where nobody says.

    Args:
        max_length: of the configuration.
        fits: the smaller of that and what the model holds; None for no bound.

    Raises:
        UserError: more are asked for than fit.
    """
    if pieces.size is None:
        return fits if fits is not None and max_length is not None else min(fits or USUAL_SIZE, USUAL_SIZE)
    if fits is not None and pieces.size > fits:
        whose = "data.max_length has" if fits == max_length else "the model holds"
        found = f"{pieces.size:,} tokens, and {whose} {fits:,}"
        raise UserError("objective.block_size", found, f"at most {fits:,}", f"objective.block_size={fits}")
    return pieces.size


def in_blocks(
    sets: Mapping[str, SampleSet], size: int, joined: bool, edges: Sequence[int]
) -> dict[str, Blocks]:
    """What is learned from and what is held out, in blocks.

    Args:
        edges: as `Blocks` takes them, of what is learned from.

    Raises:
        UserError: no text of a set has a token behind another.
    """
    made = {
        purpose: Blocks(samples, size, joined, edges if purpose == "train" else (0,)) for purpose, samples in sets.items()
    }
    for purpose, blocks in made.items():
        if not len(blocks):
            raise no_blocks(f"data.{purpose}")
    return made


def no_blocks(name: str) -> UserError:
    """Of data out of which no block can be cut."""
    return UserError(name, "its texts have one token each", "texts of two tokens and more")
