"""Encoded samples in files that are mapped into memory: one array of all ids, one of all targets, where each sample begins,
and which is the first sample of each example.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from luthier.types import Ints, Plan, Sample, place_of, shared_tokens

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

Array = npt.NDArray[Any]

DTYPES: dict[str, Any] = {
    "input_ids": np.int32,
    "targets": np.int32,
    "lengths": np.int64,
    "trained": np.int64,
    "groups": np.int64,
    "roles": np.int64,
    "shared": np.int64,
    "first_samples": np.int64,
    "prompt_keys": np.uint64,
    "row_lines": np.int64,
    "row_lengths": np.int64,
    "row_text": np.uint8,
}
"""input_ids, targets: [sum of lengths]; lengths, trained (tokens with loss), groups (within the example), roles (within the
group), shared (tokens, as `shared_tokens` says it): [samples]; first_samples (the first of each example), prompt_keys (hashes of
what decides the split), row_lines (as `place_of` takes them), row_lengths: [examples]; row_text: UTF-8 of all rows `file:number`.
"""
OF_SAMPLES = ("lengths", "trained", "groups", "roles", "shared")
OF_EXAMPLES = ("first_samples", "prompt_keys", "row_lines", "row_lengths")
FINGERPRINTED = ("input_ids", "targets", "lengths", "groups", "roles", "first_samples", "row_text")
"""The arrays that say what a run was trained on."""


@dataclass(slots=True)
class SampleBuffer:
    """Examples in memory, one after the other, as arrays of `DTYPES`."""

    samples: list[Sample] = field(default_factory=list)
    first_samples: list[int] = field(default_factory=list)
    prompt_keys: list[int] = field(default_factory=list)
    row_lines: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Samples."""
        return len(self.samples)

    @property
    def examples(self) -> int:
        return len(self.first_samples)

    def add(self, samples: Sequence[Sample], prompt_key: int, row_line: int = 0) -> None:
        """Adds an example, which has at least one sample."""
        self.first_samples.append(len(self.samples))
        self.samples += samples
        self.prompt_keys.append(prompt_key)
        self.row_lines.append(row_line)

    def arrays(self, before: int = 0) -> dict[str, Array]:
        """name -> array; see `DTYPES`. `before`: samples that stand before these."""
        rows = [self.samples[first].row.encode() for first in self.first_samples]
        values: dict[str, Any] = {
            "input_ids": _joined([sample.input_ids for sample in self.samples]),
            "targets": _joined([sample.targets for sample in self.samples]),
            "lengths": [len(sample) for sample in self.samples],
            "trained": [sample.trained_tokens for sample in self.samples],
            "groups": [sample.group for sample in self.samples],
            "roles": [sample.role for sample in self.samples],
            "shared": shared_tokens(self.samples),
            "first_samples": [before + first for first in self.first_samples],
            "prompt_keys": self.prompt_keys,
            "row_lines": self.row_lines,
            "row_lengths": list(map(len, rows)),
            "row_text": np.frombuffer(b"".join(rows), dtype=np.uint8),
        }
        return {name: np.asarray(value, dtype=DTYPES[name]) for name, value in values.items()}


class SampleSet(Sequence[Sample]):
    """Samples that can be asked for by index, wherever they are; those of an example stand one after the other.

    `lengths`, `trained`, `groups`, `roles` and `shared` are [samples] int64: tokens, tokens with loss, the group of each within its
    example, what it is in that, and how many tokens it shares;
    `first_samples` is [examples] int64: the first sample of each; `prompt_keys` is [examples] uint64 and `row_lines` [examples]
    int64, as in `DTYPES`.
    """

    lengths: Ints
    trained: Ints
    groups: Ints
    roles: Ints
    shared: Ints
    first_samples: Ints
    prompt_keys: npt.NDArray[np.uint64]
    row_lines: Ints
    neighbours: int | None = None
    """examples that are best read together, where data are streamed; None where each is at hand"""

    @abstractmethod
    def row(self, example: int) -> str:
        """`file:number` of an example: what its row is known by."""

    def place(self, example: int) -> str:
        """What the row of an example is called wherever it is shown."""
        return place_of(self.row(example), int(self.row_lines[example]))

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all ids, targets, groups, examples and row names: what a run was trained on."""

    @abstractmethod
    def at(self, index: int) -> Sample:
        """The sample at `index`, which is within bounds."""

    def ids(self, index: int, start: int, end: int) -> Ints:
        """Some of the ids of a sample, from `start` up to `end` or its own end: of a long text not all need be read."""
        return self.at(index).input_ids[start:end]

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self.first_samples)

    def example_of(self, index: int) -> int:
        """The example that a sample is of."""
        return int(np.searchsorted(self.first_samples, index, side="right")) - 1

    def members_of(self, examples: Sequence[int]) -> list[int]:
        """The samples of some examples, example after example."""
        return [index for example in examples for index in range(*self.span_of(example))]

    def plan(self, indices: Sequence[int] | None = None) -> Plan:
        """What is known of samples before they are read; of all of them by default."""
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        examples = np.searchsorted(self.first_samples, chosen, side="right") - 1
        lengths, trained, groups, roles, shared = (getattr(self, name)[chosen] for name in OF_SAMPLES)
        return Plan(lengths, trained, examples, groups, roles, shared)

    def span_of(self, example: int) -> tuple[int, int]:
        """The first sample of an example, and the one behind its last."""
        after = example + 1
        end = int(self.first_samples[after]) if after < self.examples else len(self)
        return int(self.first_samples[example]), end

    def windows(self, size: int) -> Iterator[list[int]]:
        """All samples, about `size` at a time; those of an example are never parted."""
        places = list[int]()
        for example in range(self.examples):
            places += range(*self.span_of(example))
            if len(places) >= size:
                yield places
                places = []
        if places:
            yield places

    @property
    def last_samples(self) -> Ints:
        """[examples] the last sample of each: of a row that is split this one has the whole conversation."""
        return np.append(self.first_samples[1:], len(self)) - 1

    def by_example(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[samples] -> [examples]: the sums of what the samples of each have."""
        return np.add.reduceat(values, self.first_samples)

    def tokens_together(self, layout: str) -> Ints:
        """[groups of all examples] tokens that one forward pass must hold, as a loss reads the samples of a group together: with padding
        in that layout, and what they share once in the shared one.
        """
        if self.examples == len(self):
            return self.lengths
        plan = self.plan()
        _, group = np.unique(plan.examples * (plan.groups.max() + 1) + plan.groups, return_inverse=True)
        standing = plan.standing(layout)
        if layout != "padded":
            return np.bincount(group, standing).astype(np.int64)
        longest = np.zeros(group.max() + 1, dtype=np.int64)
        np.maximum.at(longest, group, standing)
        return longest * np.bincount(group)

    def __len__(self) -> int:
        """Samples."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(index % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self.at(index) for index in range(len(self)))


class First(SampleSet):
    """The first so many examples of others."""

    def __init__(self, whole: SampleSet, examples: int) -> None:
        self._whole, self.neighbours = whole, whole.neighbours
        end = len(whole) if examples >= whole.examples else int(whole.first_samples[examples])
        self.lengths, self.trained = whole.lengths[:end], whole.trained[:end]
        self.groups, self.roles, self.shared = whole.groups[:end], whole.roles[:end], whole.shared[:end]
        self.first_samples, self.prompt_keys = whole.first_samples[:examples], whole.prompt_keys[:examples]
        self.row_lines = whole.row_lines[:examples]

    @property
    def fingerprint(self) -> str:
        return f"{self.examples} of {self._whole.fingerprint}"

    def row(self, example: int) -> str:
        return self._whole.row(example)

    def at(self, index: int) -> Sample:
        return self._whole.at(index)


class Given(SampleSet):
    """The samples of the first role: of a pair the better answer, of judged answers the good ones. Examples that have none are left
    out.
    """

    def __init__(self, whole: SampleSet) -> None:
        self._whole, self.neighbours = whole, whole.neighbours
        self._chosen = np.flatnonzero(whole.roles == 0)
        plan = whole.plan(self._chosen.tolist())
        self.lengths, self.trained, self.groups, self.roles = plan.lengths, plan.trained, plan.groups, plan.roles
        self.shared = np.zeros_like(plan.shared)
        self._examples, self.first_samples = np.unique(plan.examples, return_index=True)
        self.prompt_keys, self.row_lines = whole.prompt_keys[self._examples], whole.row_lines[self._examples]

    @property
    def fingerprint(self) -> str:
        return f"given of {self._whole.fingerprint}"

    def row(self, example: int) -> str:
        return self._whole.row(int(self._examples[example]))

    def at(self, index: int) -> Sample:
        return replace(self._whole.at(int(self._chosen[index])), example=self.example_of(index))


class DamagedCache(ValueError):
    """The files do not fit together; they are made again."""


class Samples(SampleSet):
    """Read-only samples, memory-mapped."""

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
        self._ids, self._targets, self._row_text = arrays["input_ids"], arrays["targets"], arrays["row_text"]
        self.lengths, self.trained, self.groups, self.roles, self.shared = (arrays[name] for name in OF_SAMPLES)
        self.first_samples, self.prompt_keys = arrays["first_samples"], arrays["prompt_keys"]
        self.row_lines = arrays["row_lines"]
        self._offsets, self._row_offsets = _starts(self.lengths), _starts(arrays["row_lengths"])
        if not (
            len({len(arrays[name]) for name in OF_SAMPLES}) == len({len(arrays[name]) for name in OF_EXAMPLES}) == 1
            and self.examples <= len(self)
            and self._offsets[-1] == len(self._ids) == len(self._targets)
            and self._row_offsets[-1] == len(self._row_text)
        ):
            raise DamagedCache(f"{folder}: the arrays do not fit together")

    def at(self, index: int) -> Sample:
        start, end, example = self._offsets[index], self._offsets[index + 1], self.example_of(index)
        return Sample(
            self._ids[start:end].astype(np.int64),
            self._targets[start:end].astype(np.int64),
            self.row(example),
            example,
            int(self.groups[index]),
            int(self.roles[index]),
        )

    def ids(self, index: int, start: int, end: int) -> Ints:
        first, last = int(self._offsets[index]), int(self._offsets[index + 1])
        found: Ints = self._ids[first + start : min(first + end, last)].astype(np.int64)
        return found

    def row(self, example: int) -> str:
        return bytes(self._row_text[self._row_offsets[example] : self._row_offsets[example + 1]]).decode()

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """All samples at once, memory-mapped: ids and targets, [tokens]; where each sample begins, [samples + 1]."""
        return self._ids, self._targets, self._offsets

    @property
    def row_names(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """`row` of all examples: UTF-8, [bytes]; where each begins, [examples + 1]."""
        return self._row_text, self._row_offsets

    @cached_property
    def fingerprint(self) -> str:
        return combined(self._digest(name) for name in FINGERPRINTED)

    @cached_property
    def checksum(self) -> str:
        """A hash of every array: whether the files are what was written."""
        return combined(self._digest(name) for name in DTYPES)

    def _digest(self, name: str) -> Digest:
        """Of an array, read piece by piece: a hash over mapped memory would hold all of it."""
        digest = hashlib.sha256()
        with (self.folder / f"{name}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest


def _joined(arrays: list[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def combined(digests: Iterable[Digest]) -> str:
    """One hash of several."""
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _starts(lengths: Array) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class SampleWriter:
    """Appends examples to files in a folder. Memory use does not grow with the data.

    `counts` of a moment, kept with `sync`, are enough to go on from that moment in another process.
    """

    def __init__(self, folder: Path, counts: Mapping[str, int] | None = None) -> None:
        """Begins anew, or after `counts` values of each array; what was written beyond them is cut off.

        Raises:
            DamagedCache: the files have fewer values than that.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.counts = dict(counts or dict.fromkeys(DTYPES, 0))
        self._files: dict[str, BinaryIO] = {}
        for name in DTYPES:
            path = folder / f"{name}.npy"
            file = self._files[name] = path.open("r+b" if counts and path.is_file() else "wb+")
            _write_header(file, name, 0)
            end = file.tell() + self.counts[name] * np.dtype(DTYPES[name]).itemsize
            if path.stat().st_size < end and counts:
                self.abandon()
                raise DamagedCache(f"{path}: it is shorter than what was noted")
            file.truncate(end)
            file.seek(end)

    def append(self, buffer: SampleBuffer) -> None:
        """Adds the examples of a buffer."""
        for name, array in buffer.arrays(before=len(self)).items():
            self._files[name].write(np.ascontiguousarray(array, dtype=DTYPES[name]).data)
            self.counts[name] += len(array)

    def __len__(self) -> int:
        """Samples."""
        return self.counts["lengths"]

    def sync(self) -> None:
        """Returns when all that was appended is on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Completes the files: the sizes are known only now."""
        for name, file in self._files.items():
            file.seek(0)
            _write_header(file, name, self.counts[name])
            file.flush()
        self.abandon()

    def abandon(self) -> None:
        """Closes the files as they are; on a full disk without what was not written yet."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()


def _write_header(file: BinaryIO, name: str, count: int) -> None:
    """numpy leaves room in the header for a first dimension that grows, so that it can be written again in place."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(DTYPES[name]).str, "fortran_order": False, "shape": (count,)}
    )
