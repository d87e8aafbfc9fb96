"""Some of the rows of an entry: drawn by the run's seed, or the first ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from luthier.config import DataFile
from luthier.data.files import Source
from luthier.errors import UserError
from luthier.randomness import permutation
from luthier.system.words import counted
from luthier.types import Ints


def sampled(found: list[Source], file: DataFile, most: int | None, seed: int) -> list[Source]:
    """The files of one entry, of which `file.num_samples` rows are drawn and then the first `most` are kept.

    The entry is one thing, however many files it has. Which rows are drawn depends on the seed, the entry's path and the
    number of its records. Rows keep their order and their place.
    """
    if file.num_samples is None and (most is None or len(found) == 1):
        return [replace(source, most=most) for source in found]
    counts = [source.count() for source in found]
    times = np.ones(sum(counts), np.int64)
    note, drawn_by = "", ""
    if file.num_samples is not None:
        if not len(times):
            raise UserError(
                file.path, "there are no rows in it", "at least one row", "leave num_samples out, or the file"
            )
        times = draw(len(times), file.num_samples, seed, file.path)
        drawn_by = f"num_samples {file.num_samples} of {len(times)} by seed {seed} in {file.path}"
        note = told(len(times), file.num_samples, seed)
    if most is not None:
        taken = np.cumsum(times)
        times = np.clip(times - np.maximum(taken - most, 0), 0, None)
        drawn_by += f"; max_samples {most}"
    parts = np.split(times, np.cumsum(counts)[:-1])
    return [
        replace(source, times=part, drawn_by=drawn_by, note=", ".join(filter(None, (source.note, note))))
        for source, part in zip(found, parts, strict=True)
        if part.any()
    ]


def draw(records: int, wanted: int, seed: int, name: str) -> Ints:
    """[records] int64: how often each record is taken, so that `wanted` rows come of it. None is taken more than once more
    often than another.
    """
    times = np.full(records, wanted // records, np.int64)
    times[permutation(records, seed, "num_samples", name)[: wanted % records]] += 1
    return times


def told(records: int, wanted: int, seed: int) -> str:
    """What is said of a draw."""
    if wanted <= records:
        return f"{wanted:,} of {counted(records, 'row')}, drawn by seed {seed}"
    whole, rest = divmod(wanted, records)
    once: Literal["", " and one more of"] = " and one more of" if rest else ""
    return f"{wanted:,} rows of {records:,}: each {whole:,} times" + (
        f"{once} {rest:,}, drawn by seed {seed}" if rest else ""
    )
