"""What flows through luthier, from a row of a file to a loss.

Shape legend, used in every docstring: B rows of a padded batch (1 when flat), T tokens of a row of the batch, N trained
positions of a micro-batch, S documents of a micro-batch, V vocabulary, D hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Role = Literal["system", "user", "assistant", "tool"]
Ints = npt.NDArray[np.int64]

NO_TARGET = -1
"""The target of a position that is not trained."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a data file, before anything is known of its meaning."""

    values: Mapping[str, Any]
    source: str
    number: int
    """Line of a JSONL or CSV file, else index of the record; both from 1."""
    line: int | None = None
    """Line at which the record begins, where `number` is an index and the file has lines (JSON)."""

    @property
    def id(self) -> str:
        return f"{self.source}:{self.number}"

    @property
    def place(self) -> str:
        """For messages: `file:line`, and the record's index where that is not the line."""
        return self.id if self.line is None else f"{self.source}:{self.line} (record {self.number})"


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    train: bool = True
    """Whether an assistant's message carries loss; other roles never do."""


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    row: str

    def with_system(self, text: str) -> Conversation:
        """This conversation with a system text before it, if it has none."""
        given = self.messages[0].role == "system"
        return self if given else replace(self, messages=(Message("system", text), *self.messages))


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text; every token of it is trained."""

    text: str
    row: str


Example = Conversation | Text


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded example. `targets[i]` is what position i is trained to predict, NO_TARGET for nothing.

    A target is usually the next input id, but need not be. Samples of one group stay in one micro-batch.
    """

    input_ids: Ints
    targets: Ints
    row: str
    group: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return int((self.targets != NO_TARGET).sum())


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass gets: flat (B = 1, documents one after the other) or right-padded (one document a row)."""

    input_ids: torch.Tensor
    """[B, T] int64"""
    position_ids: torch.Tensor
    """[B, T] int64; restart at 0 with every document"""
    targets: torch.Tensor
    """[B, T] int64; NO_TARGET where nothing is trained"""
    rows: torch.Tensor
    """[B, T] int64; the index in the data set of the row that a position belongs to: keys the random draws"""
    lengths: list[int]
    """tokens of each of the S documents"""
    layout: Literal["flat", "padded"]
    step: int
    """the optimizer step (from 0): keys the random draws"""
    row_ids: list[str] = field(default_factory=list)
    """file:line of each document, for messages"""
    head_chunks: int = 1
    """in how many pieces the head computes the trained positions; the same on every process"""


@dataclass(slots=True)
class Scores:
    """What the policy says of the trained positions, in their order in the batch. Each is [N], float32."""

    logps: torch.Tensor
    correct: torch.Tensor | None = None
    """whether the target was the most likely token (bool)"""
    entropy: torch.Tensor | None = None
    logsumexp: torch.Tensor | None = None


@dataclass(slots=True)
class LossOut:
    """A loss as a sum; the one division is by the weight of the whole global batch."""

    sum: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """sums as well; reported per unit of weight"""


class Policy(Protocol):
    """A model in training form. Called only through `__call__`, because engines wrap it."""

    def __call__(self, batch: MicroBatch, want: tuple[str, ...] = ()) -> Scores: ...


class Renderer(Protocol):
    """Turns examples into samples of tokens, under a chat template and its laws."""

    def encode_conversation(self, conversation: Conversation, index: int) -> Sample: ...

    def encode_text(self, text: Text, index: int) -> Sample: ...


class Objective(Protocol):
    """What is minimised. One file in `objectives/`."""

    needs_reference: bool

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]: ...

    def weight(self, samples: list[Sample]) -> float: ...

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut: ...
