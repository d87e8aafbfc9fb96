"""A reward model in use: what it gives answers, and how often it gives the better one more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.table import Table

from luthier.config import data_file
from luthier.data.dataset.samples import SampleSet
from luthier.errors import UserError
from luthier.inference.comparison import figure, share
from luthier.inference.intervals import bootstrap_mean
from luthier.inference.judge import SCORED_TOKENS
from luthier.inference.opened import Opened, open_model
from luthier.inference.questions import read_samples
from luthier.inference.scoring import score_answers
from luthier.objectives import Objective
from luthier.objectives.reward import Reward
from luthier.system.faults import faults_told
from luthier.system.files import refuse_odd, write_file
from luthier.system.progress import Progress, Watch, unwatched
from luthier.system.words import counted
from luthier.types import Conversation, Example, Feedback, Preference, Renderer, Sample, Text, conversations_of

Figure = tuple[float, float, float]
"""value, low, high"""


class Answers(Reward):
    """What is scored of rows of any format: each answer behind its request; of a conversation the last one; a text as a whole."""

    takes = (Conversation, Preference, Feedback, Text)

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        if isinstance(example, Text):
            return renderer.encode(example, index)
        if isinstance(example, Conversation):
            return renderer.encode(_of_last_answer(example), index)
        answered = [one for one in conversations_of(example) if isinstance(one, Conversation)]
        return [replace(renderer.encode_conversation(one, index), role=place) for place, one in enumerate(answered)]


def _of_last_answer(conversation: Conversation) -> Conversation:
    """Whatever the row trains: a document ends with the last answer that is trained."""
    said = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    messages = [replace(one, train=place in said[-1:]) for place, one in enumerate(conversation.messages)]
    return replace(conversation, messages=tuple(messages))


@dataclass(frozen=True)
class JudgedPairs:
    """What `luthier eval` says of a reward model."""

    target: str
    data: str
    pairs: int
    figures: dict[str, tuple[Figure, int]]
    """each with the number of pairs that it is of: accuracy, of all pairs, and of those whose better answer has more or fewer
    tokens than the worse one, where there are such; and margin, the mean of better minus worse"""
    dropped_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        named = {
            name: {**dict(zip(("value", "low", "high"), value, strict=True)), "pairs": pairs}
            for name, (value, pairs) in self.figures.items()
        }
        return {"target": self.target, "data": self.data, "pairs": self.pairs, **named}


def judge_pairs(
    opened: Opened, samples: SampleSet, *, data: str, seed: int = 0, dropped_rows: int = 0, watch: Watch = unwatched
) -> JudgedPairs:
    """How often the better answers get the higher score; a tie counts half.

    Args:
        samples: pairs, as objective reward encodes them.
    """
    values = score_answers(opened.policy(), samples, SCORED_TOKENS, watch)
    better, worse = samples.roles == 0, samples.roles == 1
    margins = values[better] - values[worse]
    longer = samples.trained[better] - samples.trained[worse]
    right = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    figures: dict[str, tuple[Figure, int]] = {}
    for name, chosen in (
        ("accuracy", np.ones(len(right), bool)),
        ("accuracy_where_the_better_is_longer", longer > 0),
        ("accuracy_where_the_better_is_shorter", longer < 0),
    ):
        if chosen.any():
            figures[name] = (share(right[chosen].tolist()), int(chosen.sum()))
    figures["margin"] = ((float(margins.mean()), *bootstrap_mean(margins, seed)), len(margins))
    return JudgedPairs(opened.target, data, len(margins), figures, dropped_rows)


def render(judged: JudgedPairs) -> Table:
    """For the terminal."""
    dropped = f" ({judged.dropped_rows:,} dropped)" if judged.dropped_rows else ""
    title = f"{judged.target} on {judged.data}: {counted(judged.pairs, 'pair')}{dropped}; 95 % intervals over pairs"
    table = Table(title=title, title_justify="left")
    for column in ("", "value", "pairs"):
        table.add_column(column)
    for name, (value, pairs) in judged.figures.items():
        table.add_row(name.replace("_", " "), figure(value, percent=name != "margin"), f"{pairs:,}")
    return table


# ---- luthier score


@dataclass(frozen=True)
class ScoredRow:
    """One row of a file and the scores of its answers, in their order: of a preference the best first."""

    row: str
    """file:line"""
    scores: list[float]


@dataclass(frozen=True)
class ScoredRows:
    rows: list[ScoredRow]
    dropped: int
    """rows that could not be used and were left out, as asked for"""

    def lines(self) -> Iterator[str]:
        """One JSON map a row."""
        return (json.dumps({"row": one.row, "scores": one.scores}, ensure_ascii=False) for one in self.rows)


def score_target(
    target: str,
    path: str,
    *,
    limit: int | None = None,
    chat_template: str | None = None,
    drop_bad_rows: bool = False,
    trust_remote_code: bool = False,
) -> ScoredRows:
    """What `luthier score` does: opens the target, reads the rows, scores each answer.

    Args:
        limit: take only the first so many rows.

    Raises:
        UserError: the target gives no scores, or rows cannot be used.
        EnvironmentProblem: as `open_model`.
    """
    data_file(path)  # what is wrong with its map is told before the model is loaded
    opened = open_model(target, chat_template=chat_template, trust_remote_code=trust_remote_code, takes="scores")
    with Progress() as progress:
        given = cast("Any", Answers)(Reward.Config())
        found = read_samples(opened, path, drop_bad_rows=drop_bad_rows, watch=progress, objective=given)
        whole = found.train
        count = whole.examples if limit is None else min(limit, whole.examples)
        places = list(range(count))
        ends = [whole.span_of(example) for example in places]
        samples = whole[: ends[-1][1]]
        values = score_answers(opened.policy(), samples, SCORED_TOKENS, progress)
    rows = [
        ScoredRow(whole.place(example), values[slice(*span)].tolist())
        for example, span in zip(places, ends, strict=True)
    ]
    return ScoredRows(rows, len(found.rejected))


def check_output(path: Path, inputs: Sequence[Path], force: bool) -> None:
    """A file is written over with `force` alone, and never an input.

    Raises:
        UserError: there is something.
    """
    refuse_odd(path)
    if not path.exists():
        return
    another = path.with_name(f"{path.stem}-2{path.suffix}")
    if any(other.exists() and path.resolve().is_relative_to(other.resolve()) for other in inputs):
        raise UserError(f"--output {path}", "this file is read by the command", "a new file", f"--output {another}")
    if not force:
        raise UserError(
            f"--output {path}", "it is there already", "a new file", f"--output {another}, or --force to write over it"
        )


def write_scores(found: ScoredRows, path: Path) -> None:
    """Writes a line a row; ask `check_output` first. Raises EnvironmentProblem."""
    with faults_told(f"--output {path}", "a file in a folder that is there, with room"):
        write_file(path, "".join(f"{line}\n" for line in found.lines()).encode())


def reward_objective(opened: Opened) -> Objective:
    """What a reward run learned by, or the plain one: it makes pairs of rows."""
    own = opened.config.objective if opened.config is not None else None
    made: Objective = cast("Any", Reward)(own if isinstance(own, Reward.Config) else Reward.Config())
    return made
