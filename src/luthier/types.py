"""What flows through luthier, from a row of a file to a loss.

Shape legend, used in every docstring: B rows of a padded batch (1 when flat), T tokens of a row of the batch, N trained
positions of a micro-batch, S documents of a micro-batch, V vocabulary, D hidden size, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Ints = npt.NDArray[np.int64]
else:  # a configuration is read, and explained, without either
    Ints = Any

Role = Literal["system", "user", "assistant", "tool"]

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
        """What the row is called wherever it is shown, as `place_of` writes it; `id` is what it is known by inside."""
        return place_of(self.id, self.line or 0)


def place_of(row: str, line: int) -> str:
    """`file:line` of a row `file:number`; with the record's number behind it where that is not the line.

    Args:
        line: of a record of a JSON array; 0 where the number is the line, or the file has no lines.
    """
    file, _, number = row.rpartition(":")
    return f"{file}:{line} (record {number})" if line else row


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An assistant's request to run a tool."""

    name: str
    arguments: str
    """a JSON map as text, its keys in the order of the data"""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    train: bool = True
    """Whether an assistant's message carries loss; other roles never do."""
    thinking: str = ""
    """What an assistant thought before it answered, where the data keep it apart (`reasoning_content`)."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """Of a tool's result: the tool."""
    tool_call_id: str = ""
    """Of a tool's result: the call that it answers."""


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    row: str
    tools: str = ""
    """The tools on offer: a JSON list of their schemas as text; "" for none."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Answers to one prompt, the best first; two of them are a pair of chosen and rejected."""

    prompt: tuple[Message, ...]
    answers: tuple[tuple[Message, ...], ...]
    row: str
    tools: str = ""

    @property
    def chosen(self) -> tuple[Message, ...]:
        return self.answers[0]

    @property
    def rejected(self) -> tuple[Message, ...]:
        return self.answers[-1]


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation whose last answer somebody called good or bad."""

    messages: tuple[Message, ...]
    good: bool
    row: str
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, without an answer: for learning from the model's own answers."""

    messages: tuple[Message, ...]
    row: str
    tools: str = ""
    columns: str = ""
    """The row's other columns, which a reward may need: a JSON map as text."""


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text; every token of it is trained."""

    text: str
    row: str


Example = Conversation | Preference | Feedback | Prompt | Text


def conversations_of(example: Example) -> tuple[Conversation | Text, ...]:
    """What of an example is put into tokens: each answer behind its request, which carries no loss where answers are judged;
    of a prompt alone nothing.
    """
    if isinstance(example, Preference):
        request = tuple(replace(message, train=False) for message in example.prompt)
        return tuple(Conversation((*request, *answer), example.row, example.tools) for answer in example.answers)
    if isinstance(example, Feedback):
        asked = tuple(replace(message, train=False) for message in example.messages[:-1])
        return (Conversation((*asked, example.messages[-1]), example.row, example.tools),)
    return () if isinstance(example, Prompt) else (example,)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one document of a forward pass holds. `targets[i]` is what position i is trained to predict, NO_TARGET for nothing;
    it is usually the next input id, but need not be.

    An example (a row, a pair) gives one sample or several. They are ordered, cut, dropped and counted together, and stay in
    one optimizer step. Those of one group, which a loss reads together, stay in one micro-batch, beside each other and in
    their order.
    """

    input_ids: Ints
    targets: Ints
    row: str
    example: int
    """which example of the data set it is of, from 0"""
    group: int = 0
    """which group of the example it is of; by default all of an example are one group"""
    role: int = 0
    """what it is in its group, by its place in the objective's `roles`"""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return int((self.targets != NO_TARGET).sum())


@dataclass(frozen=True, slots=True)
class Pieces:
    """How encoded texts are cut into what is learned from."""

    size: int | None
    """tokens of the longest; None: what fits"""
    joined: bool
    """whether texts stand one after the other, and a piece may be of several"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of samples before one of them is read: each is [samples] int64, in the same order."""

    lengths: Ints
    """tokens"""
    trained: Ints
    """tokens with loss"""
    examples: Ints
    groups: Ints
    roles: Ints
    shared: Ints
    """first tokens that one before has too, as `shared_tokens` says it; of each group there are all samples or none"""

    @property
    def tokens(self) -> float:
        """Trained tokens, the usual weight of a loss."""
        return float(self.trained.sum())

    @property
    def named_groups(self) -> list[tuple[int, int]]:
        """What names the group of each sample."""
        return list(zip(self.examples.tolist(), self.groups.tolist(), strict=True))

    def standing(self, layout: str) -> Ints:
        """[samples] the tokens of each that stand in its row."""
        return self.lengths - self.shared if layout == "shared" else self.lengths

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Plan:
        """That of samples which are there."""
        import numpy as np

        both = zip(samples, shared_tokens(samples), strict=True)
        found = [(len(one), one.trained_tokens, one.example, one.group, one.role, shared) for one, shared in both]
        return cls(*np.array(found, dtype=np.int64).reshape(-1, 6).T)


def shared_tokens(samples: Sequence[Sample]) -> list[int]:
    """How many of the first tokens of each sample are those of the nearest before it in its group that shares none itself.

    Of two answers to one prompt: for the second, all of the prompt but its last token. What is trained is never shared.
    """
    whole, found = dict[tuple[int, int], Sample](), list[int]()
    for sample in samples:
        group = (sample.example, sample.group)
        lender = whole.get(group)
        found.append(0 if lender is None else _beginning(lender, sample))
        if not found[-1]:
            whole[group] = sample
    return found


def _beginning(lender: Sample, sample: Sample) -> int:
    trained = (sample.targets != NO_TARGET).nonzero()[0]
    most = min(int(trained[0]) if len(trained) else len(sample) - 1, len(lender))
    differ = (lender.input_ids[:most] != sample.input_ids[:most]).nonzero()[0]
    return int(differ[0]) if len(differ) else most


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass gets: flat (B = 1, documents one after the other), shared (flat, but the tokens that documents of a group
    begin with stand only in the first of them) or right-padded (one document a row)."""

    input_ids: torch.Tensor
    """[B, T] int64"""
    position_ids: torch.Tensor
    """[B, T] int64; of each document from 0, or from the first token that it does not share"""
    targets: torch.Tensor
    """[B, T] int64; NO_TARGET where nothing is trained"""
    rows: torch.Tensor
    """[B, T] int64; the index in the data set of the sample that a position belongs to, of shared tokens that of the first which
    has them: keys the random draws"""
    lengths: list[int]
    """tokens of each of the S documents"""
    layout: Literal["flat", "shared", "padded"]
    step: int
    """the optimizer step (from 0): keys the random draws"""
    row_ids: list[str] = field(default_factory=list)
    """the row of each document, as samples have it"""
    examples: list[int] = field(default_factory=list)
    """the example of each document; none in an empty micro-batch, whose one document is no sample"""
    roles: list[int] = field(default_factory=list)
    """the role of each document, as samples have it"""
    places: list[int] = field(default_factory=list)
    """the place in the data set of each document's sample"""
    head_chunks: int = 1
    """in how many pieces the head computes the trained positions; the same on every process"""

    reference: torch.Tensor | None = None
    """[N] float32: log-probabilities by the policy at step 0, where they are kept; else the policy computes them when asked"""
    taught: torch.Tensor | None = None
    """[N, 2 K + 2] float32: a teacher's K likeliest tokens, where they are kept (policy/teacher.py); else the teacher is asked"""
    shared: list[int] = field(default_factory=list)
    """tokens of each document that do not stand in the row, but with one before; none of any where the layout is not `shared`"""

    @property
    def own(self) -> list[int]:
        """Tokens of each document that stand in the row."""
        return [
            length - shared for length, shared in zip(self.lengths, self.shared or [0] * len(self.lengths), strict=True)
        ]

    @property
    def documents(self) -> torch.Tensor:
        """[N] int64, on the CPU: the document that each trained position is of; it never falls."""
        document, place = (self.targets != NO_TARGET).nonzero().cpu().unbind(1)
        if self.layout == "padded":
            return document
        own = document.new_tensor(self.own)
        return document.new_tensor(range(len(own))).repeat_interleave(own)[place]

    @property
    def trained_tokens(self) -> list[int]:
        """Of each of the S documents."""
        import torch

        counts: list[int] = torch.bincount(self.documents, minlength=len(self.lengths)).tolist()
        return counts

    def by_document(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the trained positions, [N], as sums over each document: [S], float64, on the CPU, without gradient."""
        exact = values.detach().double().cpu()
        return exact.new_zeros(len(self.lengths)).index_add_(0, self.documents, exact)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """The same, [N] -> [S], with gradient and where the values are. A document's sum does not depend on its neighbours."""
        import torch

        return torch.stack([part.sum() for part in torch.split(values.double(), self.trained_tokens)])


@dataclass(slots=True)
class Routing:
    """What the routers of a mixture of experts say of all tokens of the micro-batch's documents, one document after the other,
    without padding: M tokens, E experts, K of them chosen for a token. One tensor a router."""

    logits: list[torch.Tensor]
    """[M, E] float32, as the router gives them"""
    chosen: list[torch.Tensor]
    """[M, K] int64"""


@dataclass(slots=True)
class Scores:
    """What the policy says of the trained positions, in their order in the batch. Each is [N], float32, but `value` and
    `routing`."""

    logps: torch.Tensor
    correct: torch.Tensor | None = None
    """whether the target was the most likely token (bool)"""
    entropy: torch.Tensor | None = None
    logsumexp: torch.Tensor | None = None
    largest: torch.Tensor | None = None
    """the largest logit"""
    divergence: torch.Tensor | None = None
    """how far the distribution is from the teacher's"""
    teacher: torch.Tensor | None = None
    """log-probabilities of the targets by the teacher, without gradient"""
    agreed: torch.Tensor | None = None
    """whether the most likely token is the teacher's too (bool)"""
    reference: torch.Tensor | None = field(default=None, init=False)
    """log-probabilities by the policy as it was at step 0, without gradient"""
    value: torch.Tensor | None = None
    """[S]: the score of each document, of its last token, by a model that has a head for it and none of words"""
    routing: Routing | None = field(default=None, init=False)


@dataclass(slots=True)
class LossOut:
    """A loss as sums, each under the name of its weight; the one division is by that weight of the whole global batch."""

    sums: dict[str, torch.Tensor]
    metrics: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """sums as well, without gradient: the name of a weight -> what is reported per unit of it"""
    documents: torch.Tensor | None = None
    """[S] float64, on the CPU: what each document adds to the loss, without gradient (`MicroBatch.by_document`); recorded by
    row. None where the loss is no sum over documents."""


class Policy(Protocol):
    """A model in training form. Called only through `__call__`, because engines wrap it."""

    def __call__(self, batch: MicroBatch, want: tuple[str, ...] = (), head: bool = True) -> Scores:
        """Scores of the trained positions.

        Args:
            want: what is asked beside log-probabilities, by the names of Scores. These carry a gradient, but where `divergence` is
                asked for and `logps` is not. With `divergence` come `teacher` and `agreed`.
            head: False where nothing of the logits is asked: the head is not computed, and `logps` are empty.
        """


class Renderer(Protocol):
    """Turns examples into samples of tokens, under a chat template and its laws. `index`: which example of the data set it is."""

    def encode(self, example: Conversation | Text, index: int) -> list[Sample]: ...

    def encode_conversation(self, conversation: Conversation, index: int) -> Sample: ...

    def encode_text(self, text: Text, index: int) -> Sample: ...
