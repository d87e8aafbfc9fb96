"""What tuning changed: base and tuned model on the same questions, with intervals, and the verdicts that these allow.

The base is the tuned policy as it began (`policy.reference()`), never another merge, so that the difference is the tuning
and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from luthier.inference.asked import Asked
from luthier.inference.generation import Generation, generate
from luthier.inference.intervals import FEWEST_PAIRS, Floats, bootstrap_mean, bootstrap_ratio, paired_bootstrap, wilson
from luthier.inference.judge import SCORED_TOKENS, Reading, check_reading, judged, reading_of, wins
from luthier.inference.opened import check_kind, open_model
from luthier.inference.questions import Question, matches, questions_of
from luthier.inference.scoring import RowScores, score_rows
from luthier.policy.policy import Policy
from luthier.system.memory import give_back_memory
from luthier.system.progress import Progress, Watch, unwatched
from luthier.system.words import counted

NO_DIFFERENCE = "no detectable difference"
SHOWN = 8
"""Questions whose answers are printed; JSON has all."""


@dataclass(frozen=True)
class Answered:
    """One question and both answers."""

    question: Question
    base: Generation
    tuned: Generation
    base_nll: float | None
    """Sum over the reference answer's tokens of -log p, in nats; None without a reference."""
    tuned_nll: float | None
    tokens: int
    """Of the reference answer, with its stop token."""

    def as_dict(self) -> dict[str, Any]:
        own = {"prompt": self.question.prompt, "reference": self.question.reference, "row": self.question.row}
        for name, answer, nll in (("base", self.base, self.base_nll), ("tuned", self.tuned, self.tuned_nll)):
            own[name] = {"text": answer.text, "stopped": answer.stopped, "nll": nll}  # type: ignore[assignment]
        return own | {"reference_tokens": self.tokens or None}


@dataclass(frozen=True)
class Measure:
    """One figure of base and tuned over the rows with a reference, each with its 95 % interval."""

    name: str
    base: tuple[float, float, float]
    """value, low, high"""
    tuned: tuple[float, float, float]
    difference: tuple[float, float, float]
    """tuned - base, paired by row"""
    verdict: str


@dataclass(frozen=True)
class Judged:
    """What a reward model says of all answers."""

    judge: str
    base: list[float]
    """the score of each answer"""
    tuned: list[float]
    measures: list[Measure]
    """judge_score: the means; judge_win_rate: how often either gets the higher score, a tie counts half"""


@dataclass(frozen=True)
class Comparison:
    """Everything that `luthier compare` says."""

    target: str
    base: str
    answered: list[Answered]
    measures: list[Measure]
    judged: Judged | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        shown = [*self.measures, *(self.judged.measures if self.judged is not None else ())]
        measures = {item.name: {key: value for key, value in asdict(item).items() if key != "name"} for item in shown}
        answers = [item.as_dict() for item in self.answered]
        if self.judged is not None:
            for answer, base, tuned in zip(answers, self.judged.base, self.judged.tuned, strict=True):
                answer["base"]["score"], answer["tuned"]["score"] = base, tuned
        judge = {"judge": self.judged.judge} if self.judged is not None else {}
        return {"target": self.target, "base": self.base, "answers": answers, "measures": measures, **judge}


def compare(
    policy: Policy,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    stop_ids: Collection[int],
    target: str,
    base: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Comparison:
    """Lets base and tuned model answer, and scores the reference answers where there are any.

    Args:
        policy: with a reference; see `Opened.policy`.
        questions: at least one.
        target, base: what the two are called.
    """
    prompts = [question.prompt_ids for question in questions]
    samples = [sample for question in questions if (sample := question.sample) is not None]

    def both() -> tuple[list[Generation], RowScores | None]:
        scores = (
            score_rows(policy, samples, layout="padded", max_tokens=SCORED_TOKENS, watch=watch) if samples else None
        )
        return generate(
            policy.model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            temperature=temperature,
            seed=seed,
            watch=watch,
        ), scores

    tuned, tuned_scores = both()
    with policy.reference():
        before, base_scores = both()
    scored = (
        zip(base_scores.nll, tuned_scores.nll, tuned_scores.tokens, strict=True)
        if base_scores and tuned_scores
        else iter(())
    )
    answered = []
    for question, old, new in zip(questions, before, tuned, strict=True):
        base_nll, tuned_nll, tokens = next(scored) if question.sample is not None else (None, None, 0)
        answered.append(Answered(question, old, new, _float(base_nll), _float(tuned_nll), int(tokens)))
    return Comparison(target, base, answered, measures_of(answered, seed))


def compare_target(target: str, asked: Asked) -> Comparison:
    """What `luthier compare` does: opens the target, gathers the questions, compares.

    Raises:
        UserError: no question, a file that cannot be used, or a target that was not tuned.
    """
    asked.refuse_wrong(target)
    code = asked.trust_remote_code
    if asked.judge is not None:
        check_kind(asked.judge, "scores", code)
    with Progress() as progress:
        found, reading = _compared(target, asked, progress)
        if asked.judge is None or reading is None:
            return found
        give_back_memory()  # one model at a time
        answers = [[(one.question.prompt_ids, answer) for one in found.answered for answer in (one.base, one.tuned)]]
        (both,) = judged(asked.judge, [reading], answers, trust_remote_code=code, watch=progress)
    base, tuned = both[::2], both[1::2]
    said = Judged(asked.judge, base.tolist(), tuned.tolist(), _judged_measures(base, tuned, asked.seed))
    return replace(found, judged=said)


def _judged_measures(base: Floats, tuned: Floats, seed: int) -> list[Measure]:
    moved = paired_bootstrap(tuned, base, seed)
    before, after = ((float(scores.mean()), *bootstrap_mean(scores, seed)) for scores in (base, tuned))
    said = verdict(len(base), moved, lower_is_better=False)
    won = np.sign(tuned - base)
    ahead = (float(won.mean()), *bootstrap_mean(won, seed))
    return [
        Measure("judge_score", before, after, moved, said),
        Measure("judge_win_rate", wins(base, tuned), wins(tuned, base), ahead, verdict(len(base), ahead, lower_is_better=False)),
    ]


def _compared(target: str, asked: Asked, progress: Watch) -> tuple[Comparison, Reading | None]:
    """The comparison without a judge, whose model is let go of; and how that reads a request, where a judge is to know it."""
    opened = open_model(target, chat_template=asked.chat_template, trust_remote_code=asked.trust_remote_code)
    reading = reading_of(opened) if asked.judge is not None else None
    if asked.judge is not None and reading is not None:
        check_reading(asked.judge, reading, asked.trust_remote_code)
    policy = opened.policy(with_reference=True)
    return (
        compare(
            policy,
            opened.tokenizer,
            questions_of(opened, asked, progress),
            stop_ids=opened.renderer.stop_ids,
            target=target,
            base=opened.before,
            max_new_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            watch=progress,
        ),
        reading,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def measures_of(answered: Sequence[Answered], seed: int = 0) -> list[Measure]:
    """NLL of the reference and exact match, over the rows that have a reference; none where no row has."""
    rows = [item for item in answered if item.base_nll is not None and item.tuned_nll is not None]
    if not rows:
        return []
    base = np.array([item.base_nll for item in rows], dtype=np.float64)
    tuned = np.array([item.tuned_nll for item in rows], dtype=np.float64)
    tokens = np.array([item.tokens for item in rows], dtype=np.float64)

    def per_token(sums: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float]:
        return (float(sums.sum() / tokens.sum()), *bootstrap_ratio(sums, tokens, seed))

    nll = per_token(tuned - base)
    right_base = [float(matches(item.base, item.question)) for item in rows]
    right_tuned = [float(matches(item.tuned, item.question)) for item in rows]
    exact = paired_bootstrap(right_tuned, right_base, seed)
    return [
        Measure("nll_per_token", per_token(base), per_token(tuned), nll, verdict(len(rows), nll, lower_is_better=True)),
        Measure(
            "exact_match",
            share(right_base),
            share(right_tuned),
            exact,
            verdict(len(rows), exact, lower_is_better=False),
        ),
    ]


def share(values: Sequence[float]) -> tuple[float, float, float]:
    """The share of ones among zeros and ones, with its Wilson interval."""
    successes = round(sum(values))
    return (successes / len(values), *wilson(successes, len(values)))


def verdict(rows: int, difference: tuple[float, float, float], *, lower_is_better: bool) -> str:
    """What a paired difference (tuned - base) and its interval allow to say."""
    _, low, high = difference
    if rows < FEWEST_PAIRS:
        return f"{rows} rows are too few to tell; {FEWEST_PAIRS} are the least"
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return "tuned is better" if (high < 0) == lower_is_better else "tuned is worse"


def render(comparison: Comparison) -> RenderableType:
    """For the terminal: answers side by side, then the measures."""
    answers = Table(show_lines=True, expand=True)
    for title in ("prompt", f"base: {comparison.base}", f"tuned: {comparison.target}"):
        answers.add_column(escape(title), overflow="fold", ratio=1)
    shared = shared_beginning([item.question.prompt for item in comparison.answered])
    for item in comparison.answered[:SHOWN]:
        prompt = item.question.prompt.removeprefix(shared) + (
            f"\n\nreference: {item.question.reference}" if item.question.reference is not None else ""
        )
        answers.add_row(
            escape(prompt),
            _answer(item.base, item.base_nll, item.tokens),
            _answer(item.tuned, item.tuned_nll, item.tokens),
        )
    parts: list[RenderableType] = [answers]
    if shared:
        parts.insert(0, escape(f"every prompt begins with:\n{shared}"))
    if len(comparison.answered) > SHOWN:
        parts.append(f"... and {len(comparison.answered) - SHOWN} more; --json has all")
    if comparison.measures:
        rows = sum(item.base_nll is not None for item in comparison.answered)
        parts.append(_measures_table(comparison.measures, f"{rows} rows with a reference"))
    if comparison.judged is not None:
        title = f"{counted(len(comparison.answered), 'answer')} of each, judged by {comparison.judged.judge}"
        parts.append(_measures_table(comparison.judged.measures, title))
    return Group(*parts)


def shared_beginning(prompts: Sequence[str]) -> str:
    """The lines with which all of several prompts begin, a system text for one, so that a table need not repeat them."""
    if len(prompts) < 2:
        return ""
    lines = zip(*(prompt.splitlines(keepends=True)[:-1] for prompt in prompts), strict=False)
    return "".join(group[0] for group in takewhile(lambda group: len(set(group)) == 1, lines))


def _answer(answer: Generation, nll: float | None, tokens: int) -> str:
    text = escape(answer.text) + ("" if answer.stopped else " [dim](cut)[/dim]")
    return text if nll is None else f"{text}\n\n[dim]NLL of the reference: {nll / tokens:.3f} a token[/dim]"


def _measures_table(measures: Sequence[Measure], title: str) -> Table:
    table = Table(title=Text(f"{title}; 95 % intervals over rows"), title_justify="left")
    for column in ("", "base", "tuned", "tuned - base", "verdict"):
        table.add_column(column)
    for item in measures:
        percent = item.name in ("exact_match", "judge_win_rate")
        table.add_row(
            item.name.replace("_", " "),
            figure(item.base, percent),
            figure(item.tuned, percent),
            figure(item.difference, percent, sign=True),
            item.verdict,
        )
    return table


def figure(value: tuple[float, float, float], percent: bool = False, sign: bool = False) -> str:
    """`1.234 [1.100, 1.300]`, or in percent."""
    plus = "+" if sign else ""
    if percent:
        return "{:{p}.1f} % [{:.1f}, {:.1f}]".format(*(100 * part for part in value), p=plus)
    return "{:{p}.3f} [{:.3f}, {:.3f}]".format(*value, p=plus)
