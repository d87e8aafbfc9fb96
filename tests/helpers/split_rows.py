"""Rows of several samples: conversations that a template splits, and objectives that make several samples of a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier.component import ComponentConfig
from luthier.objectives.sft import SFT
from luthier.types import (
    Conversation,
    Example,
    LossOut,
    MicroBatch,
    Policy,
    Preference,
    Renderer,
    Sample,
    conversations_of,
)

REWRITES = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ 'Said before: ' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that writes an answer otherwise once it is history: each answer becomes a sample."""


def write_conversations(path: Path, answers: Sequence[int], words: int = 3) -> None:
    """A row for each number: a conversation of so many answers."""
    rows = [
        [
            {"role": role, "content": f"{role} {number} {turn} " + "word " * ((number + turn) % words + 1)}
            for turn in range(count)
            for role in ("user", "assistant")
        ]
        for number, count in enumerate(answers)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")


class Pairs(SFT):
    """Two answers to each request, which the loss reads together; it notes the rows of each micro-batch that it gets."""

    class Config(ComponentConfig):
        noted: str
        """The file for the notes."""

    config: Config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, Conversation)
        last = example.messages[-1]
        worse = replace(example, messages=(*example.messages[:-1], replace(last, content=last.content + " or not")))
        return [renderer.encode_conversation(one, index) for one in (example, worse)]

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        with Path(self.config.noted).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": batch.step, "rows": batch.row_ids}) + "\n")
        return super().loss(policy, batch)


class Preferred(SFT):
    """Rows with a better and a worse answer: the best and the worst are samples of the row, in one group."""

    class Config(ComponentConfig):
        pass

    takes = (Preference,)

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        pair = [one for one in conversations_of(example) if isinstance(one, Conversation)]
        return [renderer.encode_conversation(one, index) for one in (pair[0], pair[-1])]


def write_groups(path: Path, rows: Sequence[Sequence[int]]) -> None:
    """A row for each list of groups: `Several` makes a sample of each number."""
    lines = [
        {"prompt": f"{path.name} {number}: " + " ".join(map(str, groups)), "completion": "word " * (number % 5 + 1)}
        for number, groups in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class Several(SFT):
    """Samples of which the row says the groups: `anything: 0 0 1` are three in two groups, each a little longer than the
    last."""

    class Config(ComponentConfig):
        """It has no keys of its own."""

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, Conversation)
        asked, said = example.messages[-2:]
        samples = []
        for place, group in enumerate(asked.content.rpartition(":")[2].split()):
            answer = replace(said, content=said.content + " more" * place)
            one = renderer.encode_conversation(replace(example, messages=(asked, answer)), index)
            samples.append(replace(one, group=int(group)))
        return samples
