"""What is asked of a model that is to be judged: a prompt, and the answer that was expected, if there is one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier import component
from luthier import config as configuration
from luthier.config import DataFile
from luthier.config.components import default_component
from luthier.data.columns import NoFormat
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.progress import encoding_shown
from luthier.data.dataset.samples import Given, SampleSet
from luthier.data.files import sources
from luthier.data.readers import Limits
from luthier.errors import UserError, excerpt
from luthier.formats.prompts import Prompts
from luthier.inference.as_typed import named_by
from luthier.inference.asked import Asked
from luthier.inference.generation import Generation
from luthier.inference.opened import Opened
from luthier.models.reading import load_tokenizer
from luthier.objectives import Objective
from luthier.system.files import MANIFEST
from luthier.system.progress import Watch, unwatched
from luthier.types import NO_TARGET, Message, Prompt, Row, Sample

ANSWER_COLUMNS = {"output", "completion", "response", "messages", "conversations", "text", "chosen"}
REQUEST_COLUMNS = {"prompt", "instruction"}
BAD_ROWS = re.compile(r"([\d,]+) of ([\d,]+) rows? cannot be used")
"""How the error about rows begins."""


@dataclass(frozen=True)
class Question:
    """A prompt as the model gets it, and what should come."""

    prompt: str
    """For people."""
    prompt_ids: list[int]
    reference: str | None = None
    sample: Sample | None = None
    """Prompt and reference as one sample of which only the reference is trained."""
    row: str | None = None
    """file:line"""


def from_sample(sample: Sample, tokenizer: Any, stop_ids: Collection[int]) -> Question | None:
    """The last trained turn of an encoded conversation as a question; None for a text without a prompt."""
    trained = np.flatnonzero(sample.targets != NO_TARGET)
    if not len(trained):
        return None
    breaks = np.flatnonzero(np.diff(trained) > 1)
    start = int(trained[breaks[-1] + 1] if len(breaks) else trained[0])
    if start == 0:
        return None
    targets = sample.targets.copy()
    targets[:start] = NO_TARGET
    expected = [int(token) for token in targets[start : int(trained[-1]) + 1] if token not in stop_ids]
    prompt_ids = [int(token) for token in sample.input_ids[: start + 1]]
    return Question(
        _text(tokenizer, prompt_ids),
        prompt_ids,
        _text(tokenizer, expected),
        replace(sample, targets=targets),
        sample.row,
    )


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def matches(answer: Generation, question: Question) -> bool:
    """Whether an answer came to its end and says the reference, white space around both aside."""
    return answer.stopped and question.reference is not None and answer.text.strip() == question.reference.strip()


def question_of(opened: Opened, prompt: str, system: str | None = None, row: str | None = None) -> Question:
    """A plain request as a question without a reference. Raises UserError where the model has no chat template."""
    return _of_prompt(opened, Prompt((Message("user", prompt),), row or ""), system)


def _of_prompt(opened: Opened, prompt: Prompt, system: str | None) -> Question:
    """With `system`, else that of the training, before messages that have none of their own."""
    spoken = opened.system if system is None else system
    own = prompt.messages[0].role == "system"
    messages = [Message("system", spoken), *prompt.messages] if spoken and not own else prompt.messages
    ids = opened.prompt_ids(messages, prompt.tools)
    return Question(prompt.messages[-1].content, ids, row=prompt.row or None)


def read_questions(
    opened: Opened,
    path: str,
    *,
    system: str | None = None,
    drop_bad_rows: bool = False,
    limit: int | None = None,
    watch: Watch = unwatched,
) -> list[Question]:
    """The questions of a file.

    Args:
        path: a `.txt` file (a prompt a line), rows with `prompt` or `instruction` alone, or rows in any format of
            training data, whose last answer is the reference.
        system: for prompts without a reference.
        limit: take only the first so many.

    Raises:
        UserError: the file cannot be used, or holds no question.
    """
    file = configuration.data_file(path)
    if file.path.endswith(".txt") and file.format == "auto":
        questions = [
            question_of(opened, line.strip(), system, f"{file.path}:{number}")
            for number, line in enumerate(_lines(file.path), start=1)
            if line.strip()
        ]
    elif (prompts := _prompts_alone(file)) is not None:
        questions = [_of_prompt(opened, prompt, system) for prompt in prompts[:limit]]
    else:
        prepared = read_samples(opened, path, drop_bad_rows=drop_bad_rows, watch=watch, option="--prompts")
        questions = []
        for example, last in enumerate(prepared.train.last_samples[:limit].tolist()):
            found = from_sample(prepared.train[last], opened.tokenizer, opened.renderer.stop_ids)
            if found is not None:
                questions.append(replace(found, row=prepared.train.place(example)))
    if not questions:
        raise UserError(path, "it holds no question", "prompts, or conversations", "luthier eval scores plain text")
    return questions[:limit]


def questions_of(opened: Opened, asked: Asked, watch: Watch = unwatched) -> list[Question]:
    """Those of a comparison: its requests, then those of its file. Raises UserError as `read_questions`."""
    questions = [question_of(opened, text, asked.system) for text in asked.prompts]
    if asked.path is not None:
        of_rows: dict[str, Any] = {"system": asked.system, "drop_bad_rows": asked.drop_bad_rows, "limit": asked.limit}
        questions += read_questions(opened, asked.path, **of_rows, watch=watch)
    return questions


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read: {error}", "a text file in UTF-8, a prompt a line") from None


def _prompts_alone(file: DataFile) -> list[Prompt] | None:
    """What rows ask that hold no answer; None where the file names another format, or its first row is anything else."""
    named = isinstance(file.format, Prompts.Config)
    if not named and file.format != "auto":
        return None
    reader = Prompts(file.format if isinstance(file.format, Prompts.Config) else Prompts.Config())
    out: list[Prompt] = []
    for source in sources(file, "--prompts"):
        for row in source.rows():
            if not isinstance(row, Row):
                if not out and not named:
                    return None  # the way of training data lists all bad rows
                raise row
            if not named and not (row.values.keys() & REQUEST_COLUMNS and not row.values.keys() & ANSWER_COLUMNS):
                if not out:
                    return None
                raise UserError(
                    row.place, f"has the columns {excerpt(sorted(row.values))}", "a prompt alone, as the rows before it"
                )
            out.append(replace(reader.parse(row), row=row.place))
    return out


def held_out_rows(opened: Opened, watch: Watch = unwatched) -> SampleSet:
    """The rows that the run of an opened model held out, encoded as they were there; of pairs the better answers, of judged answers the
    good ones. Raises UserError as `held_out_samples`, and where there are no such answers.
    """
    return given(opened, held_out_samples(opened, watch))


def given(opened: Opened, samples: SampleSet) -> SampleSet:
    """The answers that should be likely: of pairs the better ones, of judged answers the good ones. Raises UserError: there are none."""
    found = Given(samples) if samples.roles.any() else samples
    if not len(found):
        fix = f"luthier eval {opened.target} --data FILE"
        raise UserError(opened.target, "there are no good answers among its rows", "answers that should be likely", fix)
    return found


def held_out_samples(opened: Opened, watch: Watch = unwatched) -> SampleSet:
    """The same with all answers of each row.

    Raises:
        UserError: it held out none, is no run, or its data are others now.
    """
    config, fix = opened.config, f"luthier eval {opened.target} --data FILE"
    if config is None or opened.run is None:
        raise UserError(opened.target, "it is no run, so it held out no rows", "rows to measure on", fix)
    if config.data.eval is None:
        raise UserError(opened.target, "it held out no rows (data.eval)", "rows to measure on", fix)
    own = opened.adapter is None or bool(config.data.add_tokens)  # with what the run added to the base's
    tokenizer = opened.tokenizer if own else load_tokenizer(opened.source.folder, opened.trust_remote_code)
    objective = component.make("objectives", config.objective)
    rows = encoding_shown(watch)
    data = prepare(config, tokenizer, context_length=opened.context_tokens, objective=objective, watch=rows)
    known = json.loads((opened.run / MANIFEST).read_text(encoding="utf-8")).get("fingerprints", {}).get("held_out")
    if data.eval is None or (known is not None and data.eval.fingerprint != known):
        found = "its held-out rows are not those of the run any more: a file or the template changed"
        raise UserError(opened.target, found, "the rows of then", fix)
    return data.learned["eval"]


def read_samples(
    opened: Opened,
    path: str,
    *,
    drop_bad_rows: bool = False,
    watch: Watch = unwatched,
    option: str = "--data",
    objective: Objective | None = None,
) -> Prepared:
    """A file in any format of training data, encoded as for training: with the system text of the training data before
    rows that have none. Rows are dropped only where that is asked for.

    Args:
        option: of the command line, that named the file.
        objective: what makes samples of rows; by default each trained turn of a conversation is there.

    Raises:
        UserError: the file, or rows of it, cannot be used.
    """
    policy = "drop" if drop_bad_rows else "error"
    config = configuration.from_dict(
        {
            "model": opened.target,
            "output_dir": "unused",
            "data": {
                "train": [configuration.data_entry(path)],
                "system": opened.system or None,
                "on_bad_row": policy,
                "on_long_row": policy,
            },
        }
    )
    objective = objective or component.make("objectives", default_component("objective"))
    try:
        rows = encoding_shown(watch)
        limits = Limits(settable=False)  # there is no configuration in which they could be written
        context = opened.context_tokens
        return prepare(config, opened.tokenizer, context_length=context, objective=objective, watch=rows, limits=limits)
    except NoFormat as error:
        fix = f"{option} {shlex.quote(error.proposed.named(path))}" if error.proposed.works else ""
        raise UserError(error.where, error.found, error.expected, fix) from None
    except UserError as error:
        error = named_by(option, error)
        if counts := BAD_ROWS.match(error.found):
            found = error.found.replace("; nothing was trained", "")
            drop = "" if counts[1] == counts[2] else ", or add --drop-bad-rows"
            fix = error.fix if "format: {" in error.fix else "mend the rows" + drop
            raise UserError(error.where, found, error.expected, fix) from None
        if (config_words := "on_bad_row=drop and on_long_row=drop") in error.fix:
            fix = error.fix.replace(config_words, "--drop-bad-rows")
            raise UserError(error.where, error.found, error.expected, fix) from None
        raise error from None
