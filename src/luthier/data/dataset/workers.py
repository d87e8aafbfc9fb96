"""From chunks of rows to encoded samples and their account: in this process, or in several side by side.

A chunk is encoded by a function of its rows alone, so that it does not matter where, or when a second time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from luthier.config import DataConfig
from luthier.data.chat.laws import LawBroken
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.columns import has_an_answer, proposed
from luthier.data.dataset.held_out import is_held_out
from luthier.data.dataset.ledger import LONGER, Ledger, breaks
from luthier.data.dataset.samples import SampleBuffer
from luthier.data.readers import size_of
from luthier.data.recognise import Purpose, RowParser
from luthier.errors import BadRow, EnvironmentProblem
from luthier.objectives import Objective, learning_from
from luthier.randomness import key
from luthier.system.children import is_stopped
from luthier.system.cores import cores
from luthier.system.streams import complain
from luthier.types import (
    NO_TARGET,
    Conversation,
    Example,
    Feedback,
    Preference,
    Prompt,
    Row,
    Sample,
    Text,
    conversations_of,
)

CHUNK_ROWS = 512
CHUNK_CHARACTERS = 1 << 20
"""Of the texts in a chunk: long rows make it short, so that memory stays flat."""
AHEAD = 2
"""Chunks that wait for each worker: enough that none is idle, few enough that memory stays flat."""
MOST_WORKERS = 32
PATIENCE_S = 10.0
"""After so long without a chunk it is looked whether the workers work."""
WORTH_WORKERS_BYTES = 4 << 20
PURPOSES = ("train", "eval")


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that stops a run, in plain values. It is counted as dropped, for those who go on."""

    where: str
    found: str
    expected: str
    fix: str
    long: bool
    """it has more tokens than fit"""


@dataclass(slots=True)
class Chunk:
    """What became of some rows that stand one after the other in a file."""

    sets: dict[str, SampleBuffer] = field(default_factory=lambda: {purpose: SampleBuffer() for purpose in PURPOSES})
    ledger: Ledger = field(default_factory=Ledger)
    refused: list[Refused] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    systems: set[str] = field(default_factory=set)
    """the system texts of the conversations that are trained; "" where one has none"""


class LongRow(BadRow):
    """A row of which a sample has more tokens than fit."""

    def __init__(self, row: Row, samples: list[Sample], limit: int) -> None:
        longest = max(samples, key=len)
        prompt = int((longest.targets != NO_TARGET).argmax()) + 1
        answer = "its answer" if len(samples) > 1 else "the first answer"
        before = f", of which {prompt:,} stand before {answer}" if prompt > 1 else ""  # plain text has none
        super().__init__(row.place, "", f"{len(longest):,} tokens{before}", f"at most {limit:,}")
        self.tokens = sum(map(len, samples))


def limit_of(data: DataConfig, context_length: int | None) -> int | None:
    """Tokens of the longest row that fits; None where there is no bound."""
    return min((value for value in (data.max_length, context_length) if value is not None), default=None)


@dataclass(frozen=True)
class Encoding:
    """How rows are encoded."""

    data: DataConfig
    renderer: ChatRenderer
    objective: Objective
    limit: int | None
    """tokens of the longest row that fits; where the objective cuts texts into pieces, of the longest piece"""

    def chunk(self, rows: list[Row | BadRow], parser: RowParser | None, purpose: Purpose) -> Chunk:
        """Encodes rows of one file, which `parser` (a format) parses."""
        out = Chunk()
        parsed: list[tuple[Row, Example]] = []
        for row in rows:
            out.ledger.rows_in += 1
            if isinstance(row, BadRow):
                self._reject(out, row, row.raw)
                continue
            try:
                parsed.append((row, self._parse(row, parser, purpose)))
            except BadRow as error:
                self._reject(out, error, row.values)
        self.renderer.prefetch([one for _, example in parsed for one in conversations_of(example)])
        for row, example in parsed:
            try:
                self._example(out, row, example, purpose)
            except BadRow as error:
                error.where, error.row = error.where.replace(row.id, row.place, 1), row.place
                self._reject(out, error, row.values)
        return out

    def _parse(self, row: Row, parser: RowParser | None, purpose: Purpose) -> Example:
        """The row as an example that the objective can learn from. Raises BadRow."""
        assert parser is not None, "a row that could be read, and no format"
        example = parser.parse(row)
        if not isinstance(example, self.objective.takes):
            takes = " or ".join(one.__name__.lower() for one in self.objective.takes)
            unread = isinstance(example, Prompt) and has_an_answer(row.values)
            fix = proposed(row.values).word(f"data.{purpose}", row.source) if unread else ""
            found = f"a {type(example).__name__.lower()}"
            if isinstance(example, Preference | Feedback):
                able = " or ".join(f"objective={kind}" for kind in learning_from(type(example)))
                fix = able or f"no objective learns from {found} yet; leave it out"
            raise BadRow(row.place, "", found, f"a {takes}, which the objective takes", fix)
        return example

    def _example(self, out: Chunk, row: Row, example: Example, purpose: Purpose) -> None:
        """Encodes one example. Raises BadRow."""
        prompt = prompt_of(example)
        if isinstance(self.data.eval, float) and is_held_out(prompt, self.data.eval):
            purpose = "eval"
        whole = self.objective.encode(example, out.sets[purpose].examples, self.renderer)
        # Also where the objective takes some answers only: a row is used whole or not at all.
        parts = [self.renderer.encoded_parts(one) for one in conversations_of(example)]
        samples, ledger = whole, out.ledger
        if not samples:
            raise BadRow(row.place, "", "the objective makes no sample of it", "at least one")
        fits = self.limit if self.objective.pieces is None else None  # else nothing is too long: it is cut later
        if fits is not None and any(len(sample) > fits for sample in whole):
            samples = within(whole, fits, self.objective.reads_together) if self.data.on_long_row == "truncate" else []
            if not samples:
                raise LongRow(row, whole, fits)
            ledger.rows_cut += 1
            ledger.cut.append(row.place)
            ledger.answer_tokens_cut += _trained(whole) - _trained(samples)
        _count(ledger, whole, samples, purpose)
        out.sets[purpose].add(samples, key("prompt", prompt), row.line or 0)
        if purpose == "train":
            starts = [one.messages[0] for one in conversations_of(example) if isinstance(one, Conversation)]
            out.systems |= {first.content if first.role == "system" else "" for first in starts}
        ledger.rows_split += any(len(some) > 1 for some in parts)
        noticed = [part for some in parts for part in some]
        ledger.rows_other_ids_if_encoded_whole += any(part.other_ids_if_whole for part in noticed)
        ledger.rows_with_control_text += any(part.control_text for part in noticed)

    def _reject(self, out: Chunk, error: BadRow, values: object) -> None:
        long = isinstance(error, LongRow)
        if (self.data.on_long_row if long else self.data.on_bad_row) != "drop":
            out.refused.append(Refused(error.where, error.found, error.expected, error.fix, long))
        reason = "unusable"
        if isinstance(error, LongRow):
            reason = LONGER
            out.ledger.tokens_in += error.tokens
            out.ledger.tokens_dropped += error.tokens
        elif isinstance(error, LawBroken):
            reason = breaks(error.laws)
            for law in error.laws:
                out.ledger.laws[law] = out.ledger.laws.get(law, 0) + 1
        out.ledger.drop(reason, error.row)
        out.rejected.append(
            {
                "where": error.where,
                "reason": "; ".join(filter(None, (error.found, error.expected and "expected " + error.expected))),
                "row": dict(values) if isinstance(values, Mapping) else values,
            }
        )


def _count(ledger: Ledger, whole: list[Sample], samples: list[Sample], purpose: Purpose) -> None:
    tokens, kept = sum(map(len, whole)), sum(map(len, samples))
    ledger.tokens_in += tokens
    ledger.tokens_cut += tokens - kept
    if purpose == "train":
        trained = _trained(samples)
        ledger.rows_trained += 1
        ledger.tokens_trained += trained
        ledger.tokens_context += kept - trained
    else:
        ledger.rows_held_out += 1
        ledger.tokens_held_out += kept


def _trained(samples: list[Sample]) -> int:
    return sum(sample.trained_tokens for sample in samples)


def prompt_of(example: Example) -> str:
    """What decides whether an example is held out: all before the last answer, or the text."""
    if isinstance(example, Text):
        return example.text
    if isinstance(example, Preference):
        asked = example.prompt
    else:
        last = example.messages[-1].role == "assistant"
        asked = example.messages[: len(example.messages) - last]
    return "\x1e".join([example.tools, *(f"{message.role}\x1f{message.content}" for message in asked)])


def within(samples: Sequence[Sample], limit: int, together: bool = True) -> list[Sample]:
    """What is left of an example of which no sample may have more than `limit` tokens.

    A sample that is a group of its own loses its end, and is left out where nothing is trained before it. So a conversation
    that was split keeps what it would keep as one sample: the answers that fit, and the beginning of the one that does not.
    Of several that a loss reads together none is cut or left out alone: it would be another comparison than the row's.

    Args:
        together: whether the loss reads the samples of a group together (`Objective.reads_together`).
    """
    units = [sample.group if together else place for place, sample in enumerate(samples)]
    members = Counter(units)
    long = {unit for unit, sample in zip(units, samples, strict=True) if len(sample) > limit}
    left = []
    for unit, sample in zip(units, samples, strict=True):
        if members[unit] == 1:
            left += [cut] if (cut := truncated(sample, limit)).trained_tokens else []
        elif unit not in long:
            left.append(sample)
    return left


def truncated(sample: Sample, limit: int) -> Sample:
    """The sample without what lies beyond `limit` tokens. No stop token is put at the cut."""
    if len(sample) <= limit:
        return sample
    targets = np.array(sample.targets[:limit])
    targets[-1] = NO_TARGET
    return replace(sample, input_ids=sample.input_ids[:limit], targets=targets)


# ---- several processes


@dataclass(frozen=True, slots=True)
class Work:
    """Some rows of one file: what a worker is given."""

    rows: list[Row | BadRow]
    parser: RowParser | None
    purpose: Purpose


def chunks_of(rows: Iterable[Row | BadRow]) -> Iterator[list[Row | BadRow]]:
    """The rows, CHUNK_ROWS at a time; fewer where they are long."""
    chunk, size = list[Row | BadRow](), 0
    for row in rows:
        chunk.append(row)
        size += size_of(row.values) if isinstance(row, Row) else len(row.raw or "")
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextmanager
def encoders(encoding: Encoding, workers: int) -> Iterator[Any]:
    """A function that maps an iterable of `Work` to its chunks, in order; with `workers` processes beside this one.

    Raises (when the chunks are taken):
        EnvironmentProblem: a worker was ended from outside.
    """
    if workers == 0:
        yield lambda works: (encoding.chunk(work.rows, work.parser, work.purpose) for work in works)
        return
    if encoding.renderer.template is not None:
        encoding.renderer.template.close()  # each worker starts a process of its own for the template
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (encoding,))
    is_done = False
    try:
        yield lambda works: _in_order(pool, works, AHEAD * workers)
        is_done = True
    finally:
        if not is_done:  # nobody waits for what they do, and one that somebody has stopped would never end by itself
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            # The pool's own thread waits for ever for the rest of what a killed one was writing, as this process could write it, too.
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
        pool.shutdown(cancel_futures=True)


def can_fork() -> bool:
    """Whether workers can share what this process has loaded; elsewhere one process does all."""
    return sys.platform == "linux"


def _in_order(pool: ProcessPoolExecutor, works: Iterable[Work], ahead: int) -> Iterator[Chunk]:
    waiting: deque[Future[Chunk]] = deque()
    others, workers = set(multiprocessing.active_children()), set[BaseProcess]()
    try:
        for work in works:
            waiting.append(pool.submit(_encode, work))
            workers = workers or set(multiprocessing.active_children()) - others  # the first work starts them all
            if len(waiting) > ahead:
                yield _result(waiting.popleft(), workers)
        while waiting:
            yield _result(waiting.popleft(), workers)
    except BrokenProcessPool:
        raise EnvironmentProblem(
            "data.num_workers", "a process that encodes was ended (out of memory?)", "more memory", "data.num_workers=0"
        ) from None


def _result(chunk: Future[Chunk], workers: Collection[BaseProcess]) -> Chunk:
    """Waits for a chunk, and says where a worker does not work.

    Raises:
        BrokenProcessPool: a worker has ended; also where the pool has not noticed, as it waits for the rest of what it was writing.
    """
    told, has_ended = set[int](), False
    while not wait([chunk], PATIENCE_S).done:
        if has_ended:
            raise BrokenProcessPool
        has_ended = not all(worker.is_alive() for worker in workers)
        stopped = {child.pid for child in multiprocessing.active_children() if child.pid and is_stopped(child.pid)}
        if stopped - told:
            told |= stopped
            pids = " ".join(map(str, sorted(stopped)))
            complain(f"encoding waits for a process that somebody has stopped; kill -CONT {pids} lets it go on")
    return chunk.result()


_encoding: Encoding | None = None
"""What this worker encodes with; set once, when it begins."""


def _begin(encoding: Encoding) -> None:
    global _encoding
    _encoding = encoding
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole group; the parent decides


def _end_with_the_parent() -> None:
    """A worker holds the parent's locks, too: it must not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(work: Work) -> Chunk:
    assert _encoding is not None
    return _encoding.chunk(work.rows, work.parser, work.purpose)


def default_workers(size_bytes: int) -> int:
    """Workers for files of this size: none where starting them would take longer than they save."""
    return min(cores(), MOST_WORKERS) if cores() > 1 and size_bytes >= WORTH_WORKERS_BYTES and can_fork() else 0
