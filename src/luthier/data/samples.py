"""Encoded samples in files that are mapped into memory: one array of all ids, one of all targets, and where each sample
begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from luthier.types import NO_TARGET, Ints, Sample

DTYPES: dict[str, Any] = {
    "input_ids": np.int32,
    "targets": np.int32,
    "offsets": np.int64,
    "groups": np.int64,
    "row_text": np.uint8,
    "row_offsets": np.int64,
}
"""input_ids, targets: [sum of lengths]; offsets, row_offsets: [samples + 1]; groups: [samples]; row_text: UTF-8 of all
row ids.
"""


class DamagedCache(ValueError):
    """The files do not fit together; they are made again."""


class Samples(Sequence[Sample]):
    """Read-only samples, memory-mapped. `lengths` and `trained` are [samples] int64: tokens, and tokens with loss, of
    each.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `SampleWriter` wrote.

        Raises:
            DamagedCache: a file is missing, cut off, or does not fit the others.
        """
        self.folder = folder
        try:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in DTYPES}
        except (OSError, ValueError, EOFError) as error:
            raise DamagedCache(f"{folder}: {error}") from None
        self._ids, self._targets, self._offsets = arrays["input_ids"], arrays["targets"], arrays["offsets"]
        self._groups, self._row_text, self._row_offsets = arrays["groups"], arrays["row_text"], arrays["row_offsets"]
        count = len(self._groups)
        if not (
            len(self._offsets) == len(self._row_offsets) == count + 1
            and self._offsets[-1] == len(self._ids) == len(self._targets)
            and self._row_offsets[-1] == len(self._row_text)
        ):
            raise DamagedCache(f"{folder}: the arrays do not fit together")
        self.lengths: Ints = np.diff(self._offsets)
        starts = np.concatenate([[0], np.cumsum(np.asarray(self._targets) != NO_TARGET, dtype=np.int64)])
        self.trained: Ints = starts[self._offsets[1:]] - starts[self._offsets[:-1]]

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = self._offsets[index], self._offsets[index + 1]
        return Sample(
            self._ids[start:end].astype(np.int64),
            self._targets[start:end].astype(np.int64),
            self.row(index),
            int(self._groups[index]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def row(self, index: int) -> str:
        """`file:line` of a sample."""
        return bytes(self._row_text[self._row_offsets[index] : self._row_offsets[index + 1]]).decode()

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """All samples at once, memory-mapped: ids and targets, [tokens]; where each begins, [samples + 1]; groups."""
        return self._ids, self._targets, self._offsets, self._groups

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all ids, targets, groups and row names: what a run was trained on."""
        digest = hashlib.sha256()
        for array in (self._ids, self._targets, self._offsets, self._groups, self._row_text):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class SampleWriter:
    """Appends samples to files in a folder. Memory use does not grow with the data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._counts = dict.fromkeys(DTYPES, 0)
        for name in DTYPES:
            self._files[name] = (folder / f"{name}.npy").open("wb+")
            _write_header(self._files[name], name, 0)
        for name in ("offsets", "row_offsets"):
            self._append(name, [0])

    def add(self, sample: Sample) -> None:
        row = np.frombuffer(sample.row.encode(), dtype=np.uint8)
        self._append("input_ids", sample.input_ids)
        self._append("targets", sample.targets)
        self._append("row_text", row)
        self._append("groups", [sample.group])
        self._append("offsets", [self._counts["input_ids"]])
        self._append("row_offsets", [self._counts["row_text"]])

    def __len__(self) -> int:
        return self._counts["groups"]

    def close(self) -> None:
        """Completes the files: the sizes are known only now."""
        for name, file in self._files.items():
            file.seek(0)
            _write_header(file, name, self._counts[name])
            file.close()

    def _append(self, name: str, values: npt.ArrayLike) -> None:
        array = np.asarray(values, dtype=DTYPES[name])
        self._files[name].write(array.tobytes())
        self._counts[name] += len(array)


def _write_header(file: BinaryIO, name: str, count: int) -> None:
    """numpy leaves room in the header for a first dimension that grows, so that it can be written again in place."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(DTYPES[name]).str, "fortran_order": False, "shape": (count,)}
    )
