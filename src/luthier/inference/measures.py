"""Figures of one model on a file of rows, each with a 95 % interval over rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from luthier.config import data_file
from luthier.data.dataset.samples import First, SampleSet
from luthier.inference.comparison import figure, share
from luthier.inference.generation import generate
from luthier.inference.intervals import bootstrap_ratio
from luthier.inference.judge import SCORED_TOKENS
from luthier.inference.opened import open_model
from luthier.inference.own_figures import (
    ACCURACY,
    OwnFigures,
    own_figures,
    own_objective,
    own_or_plain,
    with_own_reference,
)
from luthier.inference.questions import from_sample, given, held_out_samples, matches, read_samples
from luthier.inference.rewards import JudgedPairs, judge_pairs, reward_objective
from luthier.inference.rewards import render as render_pairs
from luthier.inference.scoring import perplexity, score_rows
from luthier.policy.policy import Policy
from luthier.system.progress import Progress, Watch, unwatched
from luthier.system.words import counted

SPARE_TOKENS = 8
"""An answer that goes on for longer than the longest reference by this is no match any more."""

Figure = tuple[float, float, float]
"""value, low, high"""


@dataclass(frozen=True)
class Measured:
    """What `luthier eval` says."""

    target: str
    data: str
    rows: int
    tokens: int
    """trained tokens"""
    figures: dict[str, Figure]
    """nll_per_token (nats), perplexity, token_accuracy, and exact_match where answers were generated"""
    answered_rows: int
    """of which exact_match is the share"""
    dropped_rows: int = 0
    """rows that could not be used and were left out, as asked for"""
    own: OwnFigures | None = None
    """of the objective that the run learned from judged answers by"""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        figures = {
            name: dict(zip(("value", "low", "high"), value, strict=True)) for name, value in self.figures.items()
        }
        return {
            "target": self.target,
            "data": self.data,
            "rows": self.rows,
            "tokens": self.tokens,
            "answered_rows": self.answered_rows,
            **figures,
            **({"objective": self.own.as_dict()} if self.own is not None else {}),
        }


def measure(
    policy: Policy,
    tokenizer: Any,
    samples: SampleSet,
    *,
    stop_ids: Collection[int],
    target: str,
    data: str,
    answered: int,
    max_new_tokens: int,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Measured:
    """Scores all samples, and lets the model answer the last turn of the first `answered` rows, greedily.

    Intervals are over rows: the samples of a row that was split are not independent of each other.

    Args:
        samples: of at least one row, each with a trained token.
        answered: for how many rows; 0 for none. Rows without a prompt (plain text) are not asked.
        max_new_tokens: bounds the answers; they are cut earlier where no match is possible any more.
    """
    scores = score_rows(policy, samples, layout="padded", max_tokens=SCORED_TOKENS, watch=watch)
    summary = scores.summary
    nll, correct, tokens = map(samples.by_example, (scores.nll, scores.correct, scores.tokens))
    low, high = bootstrap_ratio(nll, tokens, seed)
    figures: dict[str, Figure] = {
        "nll_per_token": (summary["loss"], low, high),
        "perplexity": (summary["perplexity"], perplexity(low), perplexity(high)),
        "token_accuracy": (summary["token_accuracy"], *bootstrap_ratio(correct, tokens, seed)),
    }
    first = [samples[index] for index in samples.last_samples[:answered].tolist()]
    questions = [question for sample in first if (question := from_sample(sample, tokenizer, stop_ids)) is not None]
    if questions:
        longest = max(question.sample.trained_tokens for question in questions if question.sample is not None)
        answers = generate(
            policy.model,
            tokenizer,
            [question.prompt_ids for question in questions],
            stop_ids=stop_ids,
            max_new_tokens=min(max_new_tokens, longest + SPARE_TOKENS),
            watch=watch,
        )
        figures["exact_match"] = share(
            [float(matches(answer, question)) for answer, question in zip(answers, questions, strict=True)]
        )
    return Measured(target, data, samples.examples, int(summary["tokens"]), figures, len(questions))


def measure_target(
    target: str,
    path: str | None,
    *,
    answered: int,
    max_new_tokens: int,
    limit: int | None = None,
    seed: int = 0,
    chat_template: str | None = None,
    drop_bad_rows: bool = False,
    trust_remote_code: bool = False,
) -> Measured | JudgedPairs:
    """What `luthier eval` does: opens the target, reads the rows, measures. Of a reward model: pairs.

    Args:
        path: a file; None: the rows that the run itself held out.
        limit: take only the first so many rows.

    Raises:
        UserError, EnvironmentProblem
    """
    if path is not None:
        data_file(path)  # what is wrong with its map is told before the model is loaded
    opened = open_model(target, chat_template=chat_template, trust_remote_code=trust_remote_code, takes="either")
    with Progress() as progress:
        scored, own = opened.gives_scores, own_objective(opened)
        if path is None:
            whole, dropped = held_out_samples(opened, progress), 0
        else:
            by = reward_objective(opened) if scored else own_or_plain(own) if own is not None else None
            prepared = read_samples(opened, path, drop_bad_rows=drop_bad_rows, watch=progress, objective=by)
            whole, dropped = prepared.train, len(prepared.rejected)
        data = path if path is not None else "the rows that it held out"
        if scored:
            some = _first(whole, limit)
            return judge_pairs(opened, some, data=data, seed=seed, dropped_rows=dropped, watch=progress)
        policy, missing = with_own_reference(opened, own)
        measured = measure(
            policy,
            opened.tokenizer,
            _first(given(opened, whole), limit),
            stop_ids=opened.renderer.stop_ids,
            target=target,
            data=data,
            answered=answered,
            max_new_tokens=max_new_tokens,
            seed=seed,
            watch=progress,
        )
        if own is not None:
            found = own_figures(opened, own, policy, missing, _first(whole, limit), seed, progress)
            measured = replace(measured, own=found)
    return replace(measured, dropped_rows=dropped)


def _first(samples: SampleSet, limit: int | None) -> SampleSet:
    return samples if limit is None else First(samples, limit)


def render(measured: Measured | JudgedPairs) -> Table:
    """For the terminal."""
    if isinstance(measured, JudgedPairs):
        return render_pairs(measured)
    dropped = f" ({measured.dropped_rows:,} dropped)" if measured.dropped_rows else ""
    table = Table(
        title=f"{measured.target} on {measured.data}: {counted(measured.rows, 'row')}{dropped}, "
        f"{counted(measured.tokens, 'token')}; "
        "95 % intervals over rows",
        title_justify="left",
    )
    for column in ("", "value", "note"):
        table.add_column(column)
    notes = {"nll_per_token": "nats; lower is better", "exact_match": f"of {measured.answered_rows:,} answers, greedy"}
    for name, value in measured.figures.items():
        table.add_row(
            name.replace("_", " "),
            figure(value, percent=name in ("token_accuracy", "exact_match")),
            notes.get(name, ""),
        )
    if measured.own is not None:
        for name, (value, rows) in measured.own.figures.items():
            table.add_row(
                name.replace("_", " "),
                figure(value, percent=name.startswith(ACCURACY)),
                f"of {measured.own.kind}, {counted(rows, 'row')}",
            )
        if measured.own.missing:
            table.add_row(measured.own.kind, "", measured.own.missing)
    return table
