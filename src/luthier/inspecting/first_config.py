"""What `luthier init` does: look at the data and the machine, and write a configuration to start from."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import component, config
from luthier.config.components import DEFAULT_KINDS
from luthier.config.documents import parse_yaml, to_yaml
from luthier.data.columns import NoFormat, has_an_answer, proposed
from luthier.data.files import Source, Written, sources
from luthier.data.recognise import row_parser_of
from luthier.errors import BadRow, UserError, excerpt
from luthier.inspecting import template_choice
from luthier.inspecting.template_choice import Fit, Varied
from luthier.models.sources.resolve import at_hand, refuse_missing
from luthier.objectives import learning_from
from luthier.system import machine
from luthier.system.faults import faults_told
from luthier.system.files import write_file
from luthier.system.words import counted
from luthier.types import Conversation, Example, Feedback, Preference, Prompt, Row, Text, conversations_of

MOST_ROWS = 200_000
"""Rows that are looked at in one file; more than that tells nothing new."""

ENOUGH_TO_HOLD_OUT = 100
"""From so many rows on, a twentieth of them is a measurement."""

HELD_OUT = 0.05
SAMPLE_PROMPTS = 2
SHORT_PROMPT = 80
"""Characters: a longer request is not for the eye."""
TEACHER = "teacher"
"""The key of an objective that learns from one."""
AS_A_KEY = re.compile(r"(data|data\.train|model|model\.path)=(.*)", re.DOTALL)
STEPS_AT_LEAST = 20
"""A small data set gets a small batch, so that there are steps to learn in."""


@dataclass(frozen=True)
class DataLook:
    """One file, as far as it can be told without a tokenizer. Lengths are characters."""

    path: str
    entry: Any
    """what stands for it in a configuration"""
    format: str
    rows: int
    whole: bool
    """False where the file has more rows than were looked at"""
    bad_rows: int
    first_bad_row: str
    row_lengths: Sequence[int]
    answer_lengths: Sequence[int]
    conversations: tuple[Conversation, ...] = ()
    """some of each shape"""
    note: str = ""
    """what is to be said of the choice of files"""
    objective: str = DEFAULT_KINDS["objective"]
    """what learns from its rows"""
    able: Sequence[str] = ()
    """all that can"""

    def as_text(self) -> str:
        more = "" if self.whole else " or more"
        line = (
            f"{self.path}: {counted(self.rows, 'row')}{more}, format {self.format}; {_spread('rows', self.row_lengths)}"
        )
        if self.answer_lengths:
            line += f"; {_spread('answers', self.answer_lengths)}"
        if self.bad_rows:
            line += f"\n{counted(self.bad_rows, 'row')} cannot be used, the first: {self.first_bad_row}"
        return line + (f"\n{self.note}" if self.note else "")


def _spread(what: str, lengths: Sequence[int]) -> str:
    half = statistics.median_low(lengths)
    if len(lengths) == 1:
        return f"{what} of {counted(half, 'character')}"
    return f"{what} of {min(lengths):,} to {counted(max(lengths), 'character')}, half of them up to {half:,}"


def look_at_data(paths: Sequence[str], model: str = "NAME", objective: str | None = None) -> list[DataLook]:
    """What is in files, in the files of patterns, or in hub data sets; `{path: ..., format: ...}` says how to read one.
    Columns with names of their own are read as what they evidently mean.

    Args:
        model: the name for the line that an error proposes.
        objective: what is to learn from the rows; by default what can.

    Raises:
        UserError: nothing is there, it cannot be read, its format is not recognised, or no row can be used.
    """
    looks = list[DataLook]()
    for index, path in enumerate(paths):

        def written(entry: str, index: int = index) -> str:
            return shlex.join(["luthier", "init", *paths[:index], entry, *paths[index + 1 :], "--model", model])

        try:
            looks += _looks(path, objective, written)
        except NoFormat as error:
            entry = error.proposed.named(path)
            if not error.proposed.evident:
                fix = written(entry) if error.proposed.works else ""
                raise UserError(error.where, error.found, error.expected, fix) from None
            looks += _looks(entry, objective, written)
    return looks


def check_line(data: Sequence[str], model: str | None, output: Path) -> None:
    """What can be told of a line of `luthier init` before anything is read.

    Raises:
        UserError: it has keys, as lines of `luthier train` have; no data or no model; one that is not there; no place for the
            configuration.
    """
    keys = [match for word in data if (match := AS_A_KEY.match(word))]
    if keys:
        model = next((found[2] for found in keys if found[1].startswith("model")), model)
        files = [AS_A_KEY.sub(r"\2", word) for word in data if not word.startswith("model")]
        fix = shlex.join(["luthier", "init", *(files or ["train.jsonl"]), "--model", model or "NAME"])
        raise UserError("luthier init", f"{excerpt(keys[0][0])} is a key of luthier train", "files, as they are", fix)
    if not data or model is None:
        fix = shlex.join(["luthier", "init", *(data or ["train.jsonl"]), "--model", model or "NAME"])
        raise UserError("luthier init", "no data" if not data else "no model", "both", fix)
    try:
        refuse_missing(model)
    except UserError as error:
        raise UserError(error.where, error.found, error.expected, error.fix.replace("model=", "--model ")) from None
    refuse_place(output)


def check_teacher(data: Sequence[str], model: str, objective: str | None, teacher: str | None) -> str | None:
    """The objective, where a teacher is named the one that learns from it.

    Raises:
        UserError: one that learns from a teacher has none, or the other way round; there is no such teacher.
    """
    kinds = component.listing("objectives")
    taught = [kind for kind in kinds if TEACHER in component.load("objectives", kind).Config.model_fields]
    line = ["luthier", "init", *data, "--model", model, "--objective"]
    if teacher is None:
        if objective in taught:
            fix = shlex.join([*line, objective, "--teacher", "NAME"])
            raise UserError("luthier init", f"{objective} learns from a teacher, and none is named", "a teacher", fix)
        return objective
    if objective is not None and objective not in taught:
        fix = shlex.join([*line, taught[0], "--teacher", teacher])
        raise UserError("luthier init", f"{objective} does not learn from a teacher", f"--objective {taught[0]}", fix)
    try:
        refuse_missing(teacher)
    except UserError as error:
        raise UserError(error.where, error.found, error.expected, error.fix.replace("model=", "--teacher ")) from None
    return objective or taught[0]


def _looks(path: str, objective: str | None, written: Written) -> list[DataLook]:
    entry = config.data_entry(path)
    return [_look(source, entry, objective) for source in sources(config.data_file(path), "luthier init", written)]


def _look(source: Source, entry: Any, objective: str | None) -> DataLook:
    """What is in a file, read row by row: no more of it is held than is told."""
    rows: Iterator[Row | BadRow] = itertools.islice(source.rows(), MOST_ROWS + 1)
    unread, first = list[BadRow](), next(rows, None)
    while isinstance(first, BadRow):
        unread.append(first)
        first = next(rows, None)
    if first is None:
        found = f"no row can be read, the first: {unread[0]}" if unread else "there are no rows in it"
        raise UserError(source.name, found, "at least one row")
    parser, rows = row_parser_of(source, itertools.chain([first], rows), "data.train")
    assert parser is not None
    count, bad, first_bad = len(unread), len(unread), unread[0] if unread else None
    lengths, answers, kept, able = array("q"), array("q"), Varied(), list[str]()
    for row in itertools.islice(rows, max(0, MOST_ROWS - count)):
        count += 1
        try:
            if isinstance(row, BadRow):
                raise row
            example = parser.parse(row)
        except BadRow as error:
            bad, first_bad = bad + 1, first_bad or error
            continue
        if not lengths:
            able = learning_from(type(example))
            objective = _learns(source, row, example, parser.kind, able, objective)
        lengths.append(_length(example))
        answers.extend(_answer_lengths(example))
        if isinstance(example, Preference | Feedback):
            example = conversations_of(example)[0]
        if isinstance(example, Conversation):
            kept.add(example)
    if not lengths or objective is None:
        found = f"none of its {counted(count, 'row')} can be used; the first: {first_bad}"
        raise UserError(source.name, found, f"rows in the format {parser.kind}")
    said = "" if first_bad is None else f"{first_bad.where}: {first_bad.found}"
    whole = next(rows, None) is None
    shapes, note = tuple(kept.conversations), source.note
    return DataLook(
        source.name, entry, parser.kind, count, whole, bad, said, lengths, answers, shapes, note, objective, able
    )


def _learns(source: Source, row: Row, example: Example, kind: str, able: list[str], asked: str | None) -> str:
    """The objective that learns from an example: the one that is asked for, the default, or the usual one.

    Raises:
        UserError: there is none; NoFormat where its columns may mean more.
    """
    if asked in able:
        return asked
    usual = [one for one in able if one == DEFAULT_KINDS["objective"] or component.load("objectives", one).usual]
    if asked is None and usual:
        return usual[0]
    learner = asked or "an objective"
    found = f"its rows have the format {kind}, from which {learner} cannot learn"
    expected = "rows with an answer to learn, pairs of answers, judged answers, or texts"
    if asked is not None:
        component.load("objectives", asked)  # one that is not there is told with its nearest
        raise UserError(source.name, found, "other rows", f"--objective {usual[0]}" if usual else "")
    if isinstance(example, Prompt) and source.file.format == "auto" and has_an_answer(row.values):
        raise NoFormat(source.name, found, expected, "", proposed(row.values))
    raise UserError(source.name, found, expected)


def _length(example: Example) -> int:
    if isinstance(example, Text):
        return len(example.text)
    if isinstance(example, Preference):
        return sum(len(message.content) for message in example.prompt + example.chosen)
    return sum(len(message.content) for message in example.messages)


def _answer_lengths(example: Example) -> list[int]:
    if isinstance(example, Preference):
        return [sum(len(message.content) for message in answer) for answer in (example.chosen, example.rejected)]
    if isinstance(example, Feedback):
        return [len(example.messages[-1].content)]
    if not isinstance(example, Conversation):
        return []
    return [len(message.content) for message in example.messages if message.role == "assistant" and message.train]


def machine_text(found: machine.Machine) -> str:
    """The machine in a line."""
    free = "unknown" if found.available_bytes is None else machine.size(found.available_bytes)
    gpus = ", ".join(f"{gpu.name} ({machine.size(gpu.free_bytes)} free)" for gpu in found.gpus) or "no GPU"
    return f"{found.cores} cores, {free} memory free, {gpus}"


def look_at_model(model: str, looks: Sequence[DataLook]) -> Fit | None:
    """Whether the model's chat template holds the data, where the model is on this machine; nothing is fetched."""
    conversations = [one for look in looks for one in look.conversations]
    return template_choice.look(at_hand(model), conversations) if conversations else None


def draft(
    model: str,
    looks: Sequence[DataLook],
    tuning: str | None = None,
    output_dir: str = "",
    fit: Fit | None = None,
    teacher: str | None = None,
) -> str:
    """YAML text of a configuration for this data, with comments; it loads.

    Args:
        fit, teacher: what `look_at_model` found, and what the objective learns from.

    Raises:
        UserError: the model or the tuning method is none.
    """
    tuning = tuning or DEFAULT_KINDS["tuning"]
    objective = _one_objective(looks, teacher)
    rows = sum(look.rows for look in looks)
    entries = [look.entry for index, look in enumerate(looks) if look.entry not in [one.entry for one in looks[:index]]]
    data: dict[str, Any] = {"train": entries[0] if len(entries) == 1 else entries}
    comments = {"train": f"{counted(rows, 'row')}, {' and '.join(sorted({look.format for look in looks}))}"}
    fit = fit or Fit("")
    for key, (value, why) in fit.keys.items():
        data[key], comments[key] = value, " ".join(why.split())
    if rows >= ENOUGH_TO_HOLD_OUT:
        data["eval"] = HELD_OUT
        comments["eval"] = "the share of rows that is held out to measure on"
    if bad := sum(look.bad_rows for look in looks):
        comments["on_bad_row"] = (
            f"{counted(bad, 'row')} cannot be used; drop: leave them out, and write them to rejected.jsonl"
        )
        data["on_bad_row"] = "error"
    place = output_dir or _new_folder(entries[0]["path"] if isinstance(entries[0], dict) else entries[0])
    head = {"model": model, "data": data, "tuning": tuning, **objective}
    filled = config.from_dict({**head, "output_dir": place})
    training: dict[str, Any] = {
        "global_batch_size": _batch(rows),
        "num_train_epochs": filled.training.num_train_epochs,
    }
    if fit.holds and (prompts := _sample_prompts(looks, filled.objective.kind)):
        training["sample_prompts"] = prompts
        comments["sample_prompts"] = "answered at each evaluation, for the eye: samples.jsonl, report.html"
    comments |= {
        "model": "" if Path(model).exists() else f"luthier download {model} fetches it ahead of time",
        "tuning": f"or {', '.join(kind for kind in component.listing('tuning') if kind != tuning)}; "
        f"{'the learning rate is' if objective else 'sets the learning rate, here'} {filled.training.learning_rate:g}",
        "global_batch_size": "examples of one optimizer step",
        "num_train_epochs": "passes over the data",
        "output_dir": "everything that the run writes",
    }
    if objective:
        others = [kind for kind in looks[0].able if kind != looks[0].objective]
        comments["objective"] = f"the rows are for it; or {', '.join(others)}" if others else "the rows are for it"
        comments[TEACHER] = "its tokenizer must be that of the model"
    tree = {**head, "training": training, "output_dir": filled.output_dir}
    said = "# Written by luthier init. `luthier explain` lists all keys, `luthier explain KEY` says what one takes.\n"
    text = said + _commented(to_yaml(tree), comments)
    config.build(parse_yaml(text, "draft"))
    return text


def _one_objective(looks: Sequence[DataLook], teacher: str | None) -> dict[str, Any]:
    """The key of the objective, where it is not the default. Raises UserError where files are for several."""
    found = {look.objective: look.path for look in looks}
    default = DEFAULT_KINDS["objective"]
    if len(found) > 1 and all(default in look.able for look in looks):  # texts beside conversations
        return {}
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise UserError(
            other, f"{second} learns from its rows, but {first} from those of {one}", "files for one objective"
        )
    (kind,) = found
    if teacher is not None:
        return {"objective": {"kind": kind, TEACHER: teacher}}
    return {"objective": kind} if kind != default else {}


def _sample_prompts(looks: Sequence[DataLook], objective: str) -> list[str]:
    """The first requests of the data that are short; none where what is made has no words to answer with."""
    if "value" in component.load("objectives", objective).wants:
        return []
    first = (one.messages[0] for look in looks for one in look.conversations)
    short = (message.content for message in first if message.role == "user")
    found = (text for text in short if text.strip() and len(text) <= SHORT_PROMPT and text.isprintable())
    return list(itertools.islice(dict.fromkeys(found), SAMPLE_PROMPTS))


def _commented(text: str, comments: dict[str, str]) -> str:
    lines = []
    for line in text.splitlines():
        key = line.split(":")[0]
        nested = key.startswith("    ")  # of a file's own map, whose keys are others
        comment = "" if nested else comments.get(key.strip(), "")
        lines.append(f"{line:<34} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _batch(rows: int) -> int:
    return next(size for size in (16, 8, 4, 2, 1) if rows >= size * STEPS_AT_LEAST or size == 1)


def _new_folder(path: str) -> str:
    """`runs/` and the data's name, with a number where that is taken."""
    stem = "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(path).stem) or "run"
    names = itertools.chain([f"runs/{stem}"], (f"runs/{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())


def refuse_place(path: Path) -> None:
    """Raises UserError where a file is there already, or no folder for it."""
    if os.path.lexists(path):
        raise UserError(
            str(path), "this file is there already", "a new file", f"--output {path.with_stem(f'{path.stem}-2')}"
        )
    if not path.parent.exists():
        make = shlex.join(["mkdir", "-p", str(path.parent)])
        raise UserError(str(path), f"there is no folder {path.parent}", "a folder that is there", make)


def write_new(path: Path, text: str) -> None:
    """Writes a file that is not there yet.

    Raises:
        UserError: it is there already, or its folder is not.
        EnvironmentProblem: it cannot be written.
    """
    refuse_place(path)
    with faults_told(path, "a writable folder", "--output FILE"):
        write_file(path, text.encode())
