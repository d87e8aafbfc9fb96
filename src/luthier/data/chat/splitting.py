"""A conversation as one for each of its answers: where a template writes what is history otherwise than what is new."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from luthier.errors import BadRow
from luthier.types import Conversation

MOST_MESSAGES = 50_000
MOST_CHARACTERS = 1 << 25
"""Of all samples of one row. Each answer brings its history once more, so they grow with the square of the row."""


def answers_of(conversation: Conversation) -> list[int]:
    """Which of the messages are the assistant's."""
    return [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]


def one_answer_each(conversation: Conversation) -> tuple[Conversation, ...]:
    """The conversation up to each of its trained answers, only that one trained; none where that is the conversation
    itself.

    Raises:
        BadRow: together they are more than MOST_MESSAGES, or MOST_CHARACTERS.
    """
    messages = conversation.messages
    trained = [index for index in answers_of(conversation) if messages[index].train]
    if trained == [len(messages) - 1]:
        return ()
    sizes = list(accumulate(len(message.content) + len(message.thinking) for message in messages))
    count, size = sum(trained) + len(trained), sum(sizes[index] for index in trained)
    if count > MOST_MESSAGES or size > MOST_CHARACTERS:
        found = f"{len(trained):,} answers, each a sample with its history: {count:,} messages and {size:,} characters"
        fix = "cut the conversation into shorter ones, or take a template that writes history as it was"
        most = f"at most {MOST_MESSAGES:,} messages and {MOST_CHARACTERS:,} characters"
        raise BadRow(conversation.row, "", found, most, fix)
    untrained = tuple(replace(message, train=message.role != "assistant") for message in messages)
    return tuple(replace(conversation, messages=(*untrained[:index], messages[index])) for index in trained)
