"""A conversation in tokens, and what the laws are checked on: its text, its turns, and what is served before each."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data.chat.beginnings import Beginning
from luthier.types import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the assistant in a rendered text. `start` and `end` are character offsets."""

    index: int
    """of the message in the conversation"""
    message: Message
    start: int
    end: int
    """after the stop token; without one, after the answer"""
    stop: str
    """the control token that ends the turn; "" where the template writes none"""
    after: str
    """what the template marks as the assistant's behind the stop token"""
    prompt: Beginning
    """what is served before this turn: the messages before it, rendered with the generation prompt; as part of the text"""
    trained: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one encoded example."""

    messages: tuple[Message, ...]
    """empty for plain text"""
    text: str
    """what was encoded"""
    plain: str
    """the same conversation rendered without any mark of ours"""
    turns: tuple[Turn, ...]
    ids: list[int]
    trained: list[bool]
    """for each id, whether it is a target"""
    spans: list[tuple[int, int]]
    """the ids of each trained turn, in order"""
    control_expected: int
    """control tokens that the template wrote"""
    control_ids: frozenset[int]
    control: dict[str, int]
    stop_ids: frozenset[int]
    bos_id: int | None
    bos_wanted: bool
    """whether the model was made with BOS at the beginning and nobody vouches for a template without"""
    inner_stop: str = ""
    """what the template's header says of stop tokens inside the conversation: `yes`, `no`, `target`, or nothing"""
    tools: str = ""
    """the tools on offer, as JSON"""
    drops_system: bool = False
    """whether the template shows no system text in a conversation of this shape"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in tokens, and what was noticed on the way."""

    ids: list[int]
    trained: list[bool]
    other_ids_if_whole: bool
    """one encoding of the whole text would have given other ids"""
    control_text: bool
    """the data held a control token's text, which was encoded as plain text"""
    evidence: Evidence
    stop_targets: tuple[tuple[int, int], ...] = ()
    """(position, id): where the stop token is the target though another id follows"""
