"""Several runs side by side: what differs in what they began with, what came of them, and what they answer.

What their files say costs nothing. Held-out rows are scored and requests are answered by one model after the other; where the
held-out rows are the same, to the bit, the difference is paired by row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.dataset.samples import First, SampleSet
from luthier.errors import UserError
from luthier.inference import judge
from luthier.inference.asked import Asked
from luthier.inference.comparison import verdict
from luthier.inference.generation import Generation, generate
from luthier.inference.intervals import bootstrap_mean, bootstrap_ratio
from luthier.inference.judge import SCORED_TOKENS, Reading, reading_of, wins
from luthier.inference.opened import Opened, check_kind, open_model
from luthier.inference.questions import Question, held_out_rows, questions_of
from luthier.inference.scoring import RowScores, score_rows
from luthier.runs.at_step import at_step
from luthier.runs.figures import RunFigures, at, points, read_figures
from luthier.runs.manifest import flat
from luthier.runs.run_folder import CONFIG
from luthier.system.memory import give_back_memory
from luthier.system.progress import Progress, Watch
from luthier.tuning.lora import plain_form

Figure = tuple[float, float, float]
"""value, low, high"""
NOT_COMPARED = ("output_dir", "report_to")
"""Keys of a configuration that say nothing of what was trained."""
OF_LAYERS = ("target_modules", "layers_to_transform", "experts")
"""Keys of tuning that say which layers get an update; what was trained says it as well."""
MEASURED = re.compile(r"\b\d(?:\.\d+)?e[-+]\d+\b")
OF_DATA = ("rows_in", "rows_trained", "rows_held_out", "rows_dropped", "tokens_trained", "tokens_held_out")
FINGERPRINTS = {
    "data": "trained rows",
    "held_out": "held-out rows",
    "template": "chat template",
    "base": "base's weights",
}
SHOWN_OF_A_HASH = 12


@dataclass(frozen=True)
class Row:
    """One thing that is said of each run, in their order; None where a run does not say it."""

    name: str
    values: list[Any]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class Scored:
    """The loss of a run on rows that it did not learn from."""

    rows: int
    tokens: int
    nll_per_token: Figure
    difference: Figure | None = None
    """to the first run, paired by row; None of the first, and where the rows are others"""
    verdict: str = ""


@dataclass(frozen=True)
class Judged:
    """What a reward model says of the answers of a run."""

    answers: int
    score: Figure
    """the mean"""
    wins: Figure | None = None
    """how often it gets a higher score than the first run for the same request, a tie counts half; None of the first"""


@dataclass(frozen=True)
class SideBySide:
    """Everything that `luthier compare RUN RUN` says."""

    targets: list[str]
    config: list[Row]
    """what differs"""
    data: list[Row]
    versions: list[Row]
    """what differs"""
    course: list[Row]
    losses: list[list[tuple[float, float]]]
    """of each run: (step, loss)"""
    held_out_losses: list[list[tuple[float, float]]]
    measured_on: str
    scored: list[Scored | None]
    answers: list[tuple[str, list[str]]]
    """(request, the answer of each)"""
    left_out: int = 0
    """rows of the file that not every run can use: nothing is said of them"""
    judged: list[Judged] = field(default_factory=list)
    """of each run, where there is a judge and something was asked"""
    judge: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        rows = {name: {row.name: row.values for row in getattr(self, name)} for name in TABLES}
        return {
            "runs": self.targets,
            **rows,
            "losses": self.losses,
            "held_out_losses": self.held_out_losses,
            "measured_on": self.measured_on,
            "left_out": self.left_out,
            "scored": [None if one is None else asdict(one) for one in self.scored],
            "answers": [{"prompt": prompt, "answers": texts} for prompt, texts in self.answers],
            **({"judge": self.judge, "judged": [asdict(one) for one in self.judged]} if self.judge else {}),
        }


TABLES = ("config", "data", "versions", "course")
Key = tuple[str, int]
"""A row of a file, or a request, and which question of it"""


@dataclass(frozen=True)
class _Told:
    """What one run made of what it was asked, by rows: each may have left out others."""

    prompts: dict[Key, str]
    answers: dict[Key, Generation]
    scored: list[Key]
    """of the entries of `scores`; empty where these are of the rows that the run held out"""
    scores: RowScores | None
    requests: dict[Key, list[int]]
    """as tokens"""
    reading: Reading | None
    """where a judge is to know it"""

    def scores_of(self, kept: Collection[Key]) -> RowScores | None:
        """Of the rows of a file that are kept, or of those that the run held out."""
        if self.scores is None or not self.scored:
            return self.scores
        places = [number for number, key in enumerate(self.scored) if key in kept]
        return RowScores(self.scores.nll[places], self.scores.correct[places], self.scores.tokens[places])


def compare_runs(targets: Sequence[str], asked: Asked) -> SideBySide:
    """Puts runs, or checkpoints of them, side by side; each is opened as `open_model` opens it. The answers of a file's rows are
    scored in the place of what the runs held out.

    Raises:
        UserError: one is no run, or a file cannot be used.
    """
    asked.refuse_wrong()
    runs = [_figures(target) for target in targets]
    if asked.judge is not None:
        check_kind(asked.judge, "scores", asked.trust_remote_code)
    found = list[_Told]()
    with Progress() as progress:
        for target in targets:
            found.append(_told(target, asked, _of(target, progress)))
            give_back_memory()
        path, kept = asked.path, _kept(found, asked)
        judged = _judged(found, list(kept), asked, progress)
    prompts = [found[0].prompts[key] for key in kept]
    answers = [[one.answers[key].text for key in kept] for one in found]
    if not prompts:  # what the runs asked themselves
        prompts, answers = _sample_answers(runs)
    same, measured_on = _measured_on(path, runs)
    return SideBySide(
        list(targets),
        _differing(_configurations(runs)),
        _data(runs),
        _differing([_said(run.manifest) for run in runs]),
        _course(runs),
        [points(run.steps, "loss") for run in runs],
        [points(run.evaluations, "eval_loss") for run in runs],
        measured_on,
        _measured([one.scores_of(kept) for one in found], same, asked.seed),
        [(prompt, [one[number] for one in answers]) for number, prompt in enumerate(prompts)],
        len({key for one in found for key in one.prompts}) - len(kept),
        judged,
        asked.judge or "",
    )


def _judged(found: Sequence[_Told], kept: Sequence[Key], asked: Asked, watch: Watch) -> list[Judged]:
    readings = [one.reading for one in found if one.reading is not None]
    if asked.judge is None or not kept or len(readings) < len(found):
        return []
    answers = [[(one.requests[key], one.answers[key]) for key in kept] for one in found]
    scores = judge.judged(asked.judge, readings, answers, trust_remote_code=asked.trust_remote_code, watch=watch)
    return [
        Judged(
            len(own), (float(own.mean()), *bootstrap_mean(own, asked.seed)), wins(own, scores[0]) if number else None
        )
        for number, own in enumerate(scores)
    ]


def _kept(found: Sequence[_Told], asked: Asked) -> dict[Key, None]:
    """What all were asked, in order."""
    kept = {key: None for key in found[0].prompts if all(key in one.prompts for one in found)}
    if asked.path is not None and len(kept) == len(asked.prompts):
        raise UserError(asked.path, "it has no row that all of them can use", "rows for each", "mend the rows")
    return kept


def _measured_on(path: str | None, runs: Sequence[RunFigures]) -> tuple[bool, str]:
    """Whether the rows are the same, and what they are called."""
    if path is not None:
        return True, path
    same = not Row("", [at(run.manifest, "fingerprints", "held_out") for run in runs]).differs
    return same, "the rows that they held out" if same else "the rows that each held out"


def _told(target: str, asked: Asked, watch: Watch) -> _Told:
    """Opens a target, and lets go of it again."""
    opened = open_model(target, chat_template=asked.chat_template, trust_remote_code=asked.trust_remote_code)
    questions = questions_of(opened, asked, watch)
    reading = reading_of(opened) if asked.judge is not None and questions else None
    if asked.judge is not None and reading is not None:
        judge.check_reading(asked.judge, reading, asked.trust_remote_code)
    scores = _scores(opened, questions if asked.path is not None else None, asked.limit, watch)
    answers = _answers(opened, questions, asked, watch)
    keys = _keys(questions)
    return _Told(
        {key: question.prompt for key, question in zip(keys, questions, strict=True)},
        dict(zip(keys, answers, strict=True)),
        [key for key, question in zip(keys, questions, strict=True) if question.sample is not None],
        scores,
        {key: question.prompt_ids for key, question in zip(keys, questions, strict=True)},
        reading,
    )


def _keys(questions: Sequence[Question]) -> list[Key]:
    met = Counter[str]()
    keys = list[Key]()
    for question in questions:
        place = question.row or ""
        keys.append((place, met[place]))
        met[place] += 1
    return keys


def _figures(target: str) -> RunFigures:
    found = at_step(target)
    folder = found.run if found is not None else Path(target)
    if not (folder / CONFIG).is_file():
        raise UserError(target, "it is no run", "folders of runs, or of their checkpoints", "luthier runs lists them")
    figures = read_figures(folder)
    return figures if found is None else figures.up_to(found.step)


def _of(target: str, watch: Watch) -> Watch:
    return lambda words, share: watch(f"{target}: {words}", share)


def _scores(opened: Opened, questions: list[Question] | None, limit: int | None, watch: Watch) -> RowScores | None:
    """Of the references of questions, or of the rows that the run held out; None where there are none."""
    if questions is not None:
        samples: Any = [question.sample for question in questions if question.sample is not None]
        by_row = samples
    else:
        if opened.config is None or opened.config.data.eval is None:
            return None
        whole: SampleSet = held_out_rows(opened, watch)
        by_row = samples = whole if limit is None else First(whole, limit)
    if not len(samples):
        return None
    scores = score_rows(opened.policy(), samples, layout="padded", max_tokens=SCORED_TOKENS, watch=watch)
    if not isinstance(by_row, SampleSet):
        return scores
    return RowScores(*(by_row.by_example(values) for values in (scores.nll, scores.correct, scores.tokens)))


def _answers(opened: Opened, questions: list[Question], asked: Asked, watch: Watch) -> list[Generation]:
    if not questions:
        return []
    return generate(
        opened.model,
        opened.tokenizer,
        [question.prompt_ids for question in questions],
        max_new_tokens=asked.max_new_tokens,
        stop_ids=opened.renderer.stop_ids,
        temperature=asked.temperature,
        seed=asked.seed,
        watch=watch,
    )


def _sample_answers(runs: list[RunFigures]) -> tuple[list[str], list[list[str]]]:
    """Of the requests that all runs answered at their end: requests, and the answers of each run."""
    said = [{str(line.get("prompt")): str(line.get("after")) for line in run.answers} for run in runs]
    common = [prompt for prompt in said[0] if all(prompt in one for one in said)]
    return common, [[one[prompt] for prompt in common] for one in said]


def _measured(scores: Sequence[RowScores | None], same: bool, seed: int) -> list[Scored | None]:
    first, found = scores[0], list[Scored | None]()
    for number, one in enumerate(scores):
        if one is None:
            found.append(None)
            continue
        nll = (float(one.nll.sum() / one.tokens.sum()), *bootstrap_ratio(one.nll, one.tokens, seed))
        rows, tokens = len(one.nll), int(one.tokens.sum())
        if number and same and first is not None and np.array_equal(first.tokens, one.tokens):
            moved = one.nll - first.nll
            difference = (float(moved.sum() / tokens), *bootstrap_ratio(moved, one.tokens, seed))
            said = verdict(rows, difference, lower_is_better=True).replace("tuned is", "it is")
            found.append(Scored(rows, tokens, nll, difference, said))
        else:
            found.append(Scored(rows, tokens, nll, None, "other rows or tokens: not paired" if number else ""))
    return found


def _configurations(runs: Sequence[RunFigures]) -> list[dict[str, Any]]:
    """What each was asked for, in one form for what means the same: a value that is left out, names as a text or as a list, the
    layers that get an update by other words."""
    same_layers = not Row(
        "", [sorted(run.manifest.get("trained_tensors") or [str(run.folder)]) for run in runs]
    ).differs
    left_out = (*NOT_COMPARED, *(f"tuning.{key}" for key in OF_LAYERS if same_layers))
    out = []
    for run in runs:
        keys = plain_form(run.config["tuning"]) if isinstance(run.config.get("tuning"), Mapping) else None
        tree = {**run.config, **({"tuning": keys} if keys is not None else {})}
        out.append({name: value for name, value in flat(_whole_lists(tree)).items() if not name.startswith(left_out)})
    return out


def _whole_lists(tree: Any) -> Any:
    """With lists of plain values as one value each."""
    if isinstance(tree, Mapping):
        return {key: _whole_lists(value) for key, value in tree.items()}
    if isinstance(tree, list) and any(isinstance(item, (Mapping, list)) for item in tree):
        return [_whole_lists(item) for item in tree]
    return tuple(tree) if isinstance(tree, list) else tree


def _differing(trees: list[dict[str, Any]]) -> list[Row]:
    names = dict.fromkeys(name for tree in trees for name in tree)
    rows = [Row(name, [tree.get(name) for tree in trees]) for name in names]
    return [row for row in rows if row.differs]


def _said(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of versions, machine and decisions, without the figures of a measurement, which are others each time."""
    decided = {key: value for key, value in (manifest.get("decisions") or {}).items() if key != "proof"}
    decisions = {key: MEASURED.sub("…", value) if isinstance(value, str) else value for key, value in decided.items()}
    tree = {"luthier": manifest.get("luthier"), "processes": manifest.get("processes")}
    return {**tree, **flat(manifest.get("versions") or {}), **flat(manifest.get("hardware") or {}), **flat(decisions)}


def _data(runs: list[RunFigures]) -> list[Row]:
    """What they learned from: that it is the same is worth saying, too."""
    hashes = [
        Row(name, [_short(at(run.manifest, "fingerprints", key)) for run in runs]) for key, name in FINGERPRINTS.items()
    ]
    counts = [Row(key.replace("_", " "), [run.ledger.get(key) for run in runs]) for key in OF_DATA]
    return [row for row in (*counts, *hashes) if any(value is not None for value in row.values)]


def _short(value: Any) -> Any:
    return value[:SHOWN_OF_A_HASH] if isinstance(value, str) else value


def _course(runs: list[RunFigures]) -> list[Row]:
    def last(lines: list[dict[str, Any]], key: str) -> Any:
        return lines[-1].get(key) if lines else None

    return [
        Row("state", [run.manifest.get("state") for run in runs]),
        Row("steps", [len(run.steps) for run in runs]),
        Row("tokens learned from", [run.trained_tokens for run in runs]),
        Row("seconds in steps", [round(run.seconds, 1) for run in runs]),
        Row("loss, first step", [run.steps[0].get("loss") if run.steps else None for run in runs]),
        Row("loss, last step", [last(run.steps, "loss") for run in runs]),
        Row("held-out loss, before", [at(run.first_evaluation or {}, "eval_loss") for run in runs]),
        Row("held-out loss, last", [at(run.last_evaluation or {}, "eval_loss") for run in runs]),
    ]
