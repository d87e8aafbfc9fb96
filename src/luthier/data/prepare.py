"""From the data files to samples: read, recognised, rendered, encoded, checked, split, counted, and kept on disk by
content.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier import component, formats
from luthier.config import DataConfig, DataFile, RunConfig
from luthier.data import laws
from luthier.data.ledger import Ledger
from luthier.data.render import ChatRenderer
from luthier.data.samples import Samples, SampleWriter
from luthier.data.source import Source, sources
from luthier.data.template import Template
from luthier.errors import UserError, excerpt
from luthier.formats._shared import BadRow
from luthier.paths import cache_dir
from luthier.randomness import key, uniform
from luthier.types import NO_TARGET, Conversation, Example, Objective, Row, Sample, Text

CHUNK_ROWS = 256
LISTED_BAD_ROWS = 20
ROWS_TO_RECOGNISE = 8


@dataclass
class Prepared:
    """What a run learns from."""

    train: Samples
    eval: Samples | None
    ledger: Ledger
    rejected: list[dict[str, Any]]
    """what was dropped: {"where", "reason", "row"}; `row` holds the values as they were read"""
    renderer: ChatRenderer
    template: Template | None
    """None where the tokenizer has none and the data need none (plain text)"""
    system: str | None
    """the system text, where all conversations have the same one: an answer is served as it was trained only with it"""
    from_cache: bool
    notes: list[str] = field(default_factory=list)


class LongRow(BadRow):
    """A row with more tokens than fit."""

    def __init__(self, row: Row, sample: Sample, limit: int) -> None:
        prompt = int((sample.targets != NO_TARGET).argmax()) + 1
        super().__init__(
            row.place,
            "",
            f"{len(sample):,} tokens, of which {prompt:,} stand before the first answer",
            f"at most {limit:,}",
        )
        self.tokens = len(sample)


def prepare(config: RunConfig, tokenizer: Any, *, context_length: int | None, objective: Objective) -> Prepared:
    """Encodes the data of a run, or takes them from the cache where nothing that matters has changed.

    Args:
        tokenizer: of transformers; fast or slow.
        context_length: tokens that the model can hold, None where it has no bound.

    Raises:
        UserError: a file, the template, or rows that cannot be used; all bad rows in one error.
    """
    template = choose_template(tokenizer, config.data)
    renderer = ChatRenderer(tokenizer, template)
    plan = _plan(config.data)
    limit = min((value for value in (config.data.max_length, context_length) if value is not None), default=None)
    name = _cache_key(config, plan, renderer, limit, objective)
    folder = cache_dir() / "encoded" / name
    found = _open(folder, renderer)
    if found is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        _Preparation(config.data, renderer, objective, limit, work).run(plan)
        _move(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = _open(folder, renderer)
    if made is None:
        raise RuntimeError(f"{folder} cannot be read right after it was written")
    made.from_cache = False
    return made


def choose_template(tokenizer: Any, data: DataConfig) -> Template | None:
    """The chat template; None where the tokenizer has none, which is an error only once a conversation is met."""
    if data.chat_template == "auto" and not tokenizer.chat_template:
        return None
    return Template.choose(tokenizer, data.chat_template)


@dataclass(frozen=True)
class _Part:
    """One file, and what it is for."""

    source: Source
    purpose: str


def _plan(data: DataConfig) -> list[_Part]:
    groups: list[tuple[str, tuple[DataFile, ...]]] = [("train", data.train)]
    if isinstance(data.eval, tuple):
        groups.append(("eval", data.eval))
    return [
        _Part(source, purpose)
        for purpose, files in groups
        for index, file in enumerate(files)
        for source in sources(file, f"data.{purpose}[{index}].path")
    ]


class _Preparation:
    """One pass over all rows."""

    def __init__(
        self, data: DataConfig, renderer: ChatRenderer, objective: Objective, limit: int | None, folder: Path
    ) -> None:
        self.data = data
        self.renderer = renderer
        self.objective = objective
        self.limit = limit
        self.folder = folder
        self.ledger = Ledger(laws=dict.fromkeys(laws.NAMES, 0))
        self.bad: list[BadRow] = []
        self.rejected: list[dict[str, Any]] = []
        self.writers = {purpose: SampleWriter(folder / purpose) for purpose in ("train", "eval")}
        self.examples = dict.fromkeys(self.writers, 0)
        self.systems: set[str] = set()
        self.prompts: dict[str, list[int]] = {"train": [], "eval": []}

    def run(self, plan: list[_Part]) -> None:
        for part in plan:
            self._file(part)
        if self.bad:
            raise self._all_bad_rows()
        self._refuse_empty(plan)
        trained = set(self.prompts["train"])
        self.ledger.held_out_prompts_also_trained = sum(prompt in trained for prompt in self.prompts["eval"])
        self.ledger.check()
        for writer in self.writers.values():
            writer.close()
        system = next(iter(self.systems)) if len(self.systems) == 1 else ""
        meta = {
            "ledger": self.ledger.as_dict(),
            "rejected": self.rejected,
            "system": system or None,
            "fingerprints": {
                purpose: Samples(self.folder / purpose).fingerprint
                for purpose, writer in self.writers.items()
                if len(writer)
            },
        }
        (self.folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=True, default=str), encoding="utf-8")

    def _file(self, part: _Part) -> None:
        rows, before = iter(part.source.rows()), self.ledger.rows_in
        first = list(itertools.islice(rows, ROWS_TO_RECOGNISE))
        good = [row for row in first if isinstance(row, Row)]
        kind = part.source.file.format
        if kind == "auto" and good:
            kind = recognise(good, part.source.name, "data." + part.purpose)
        cls = component.load("formats", kind) if kind != "auto" else None
        reader = cls(cls.Config(kind=kind)) if cls else None
        for chunk in _chunks(itertools.chain(first, rows), CHUNK_ROWS):
            self._chunk(chunk, reader, part.purpose)
        count = self.ledger.rows_in - before
        if count == 0:
            raise UserError(part.source.name, "there are no rows in it", "at least one row")
        self.ledger.sources.append(
            {
                "name": part.source.name,
                "format": kind,
                "recognised": part.source.file.format == "auto",
                "rows": count,
                "purpose": {"train": "to learn from", "eval": "held out"}[part.purpose],
            }
        )

    def _chunk(self, chunk: list[Row | BadRow], reader: Any, purpose: str) -> None:
        parsed: list[tuple[Row, Example]] = []
        for row in chunk:
            self.ledger.rows_in += 1
            if isinstance(row, BadRow):
                self._reject(row, row.raw)
                continue
            try:
                example = reader.parse(row)
                if self.data.system is not None and isinstance(example, Conversation):
                    example = example.with_system(self.data.system)
                parsed.append((row, example))
            except BadRow as error:
                self._reject(error, row.values)
        self.renderer.prefetch([example for _, example in parsed])
        for row, example in parsed:
            try:
                self._example(row, example, purpose)
            except BadRow as error:
                error.where, error.row = error.where.replace(row.id, row.place, 1), row.place
                self._reject(error, row.values)

    def _example(self, row: Row, example: Example, purpose: str) -> None:
        """Encodes one example and writes its samples. Raises BadRow."""
        prompt = prompt_of(example)
        if isinstance(self.data.eval, float) and is_held_out(prompt, self.data.eval):
            purpose = "eval"
        samples = self.objective.encode(example, self.examples[purpose], self.renderer)
        whole = samples
        if self.limit is not None and any(len(sample) > self.limit for sample in samples):
            if self.data.on_long_row == "truncate":
                samples = [truncated(sample, self.limit, row) for sample in samples]
                self.ledger.rows_cut += 1
                self.ledger.cut.append(row.id)
                self.ledger.answer_tokens_cut += sum(
                    a.trained_tokens - b.trained_tokens for a, b in zip(whole, samples, strict=True)
                )
            else:
                raise LongRow(row, max(samples, key=len), self.limit)
        self._count(whole, samples, purpose)
        for sample in samples:
            self.writers[purpose].add(sample)
        self.examples[purpose] += 1
        self.prompts[purpose].append(key("prompt", prompt))
        if isinstance(example, Conversation):
            first = example.messages[0]
            self.systems.add(first.content if first.role == "system" else "")
        noticed = self.renderer.encoded(example)
        self.ledger.rows_other_ids_if_encoded_whole += noticed.other_ids_if_whole
        self.ledger.rows_with_control_text += noticed.control_text

    def _count(self, whole: list[Sample], samples: list[Sample], purpose: str) -> None:
        tokens, kept, trained = (
            sum(map(len, whole)),
            sum(map(len, samples)),
            sum(sample.trained_tokens for sample in samples),
        )
        self.ledger.tokens_in += tokens
        self.ledger.tokens_cut += tokens - kept
        if purpose == "train":
            self.ledger.rows_trained += 1
            self.ledger.tokens_trained += trained
            self.ledger.tokens_context += kept - trained
        else:
            self.ledger.rows_held_out += 1
            self.ledger.tokens_held_out += kept

    def _reject(self, error: BadRow, values: object) -> None:
        if (self.data.on_long_row if isinstance(error, LongRow) else self.data.on_bad_row) != "drop":
            self.bad.append(error)
            return
        reason = "unusable"
        if isinstance(error, LongRow):
            reason = "longer than the limit"
            self.ledger.tokens_in += error.tokens
            self.ledger.tokens_dropped += error.tokens
        elif isinstance(error, laws.LawBroken):
            reason = f"breaks the law {error.law}"
            self.ledger.laws[error.law] += 1
        self.ledger.drop(reason, error.row)
        self.rejected.append(
            {
                "where": error.where,
                "reason": "; ".join(filter(None, (error.found, error.expected and "expected " + error.expected))),
                "row": dict(values) if isinstance(values, Mapping) else values,
            }
        )

    def _all_bad_rows(self) -> UserError:
        """One error for all rows that cannot be used: the first places, how many more, and the line to paste."""
        shown = [
            f"  {error.where}: found {error.found}"
            + (f"; expected {error.expected}" if error.expected else "")
            + (f" ({error.fix})" if error.fix else "")
            for error in self.bad[:LISTED_BAD_ROWS]
        ]
        if len(self.bad) > LISTED_BAD_ROWS:
            shown.append(f"  and {len(self.bad) - LISTED_BAD_ROWS:,} more")
        share = 100 * len(self.bad) / self.ledger.rows_in
        head = f"{len(self.bad):,} of {self.ledger.rows_in:,} rows cannot be used ({share:.2g} %); nothing was trained"
        long = sum(isinstance(error, LongRow) for error in self.bad)
        fixes = ["mend the rows"] if long < len(self.bad) else []
        fixes += ["luthier train mine.yaml on_bad_row=drop (they go to rejected.jsonl)"] if long < len(self.bad) else []
        fixes += ["luthier train mine.yaml on_long_row=drop (or truncate)"] if long else []
        return UserError("", "\n".join([head, *shown]), "", ", or ".join(fixes))

    def _refuse_empty(self, plan: list[_Part]) -> None:
        names = ", ".join(part.source.name for part in plan if part.purpose == "train")
        if not len(self.writers["train"]):
            ledger = self.ledger
            why = f"; of {ledger.rows_in:,}, {ledger.rows_dropped:,} were dropped and {ledger.rows_held_out:,} held out"
            raise UserError(
                names, "no rows are left to learn from" + why, "at least one row", "luthier data mine.yaml shows why"
            )
        if self.data.eval is not None and not len(self.writers["eval"]):
            raise UserError(
                "data.eval",
                f"{excerpt(self.data.eval)} holds out none of {self.ledger.rows_trained:,} rows",
                "at least one row",
                "a larger share, such as data.eval=0.2, a file, or leave data.eval out",
            )


def recognise(rows: list[Row], name: str, key: str) -> str:
    """The one format that recognises the first rows.

    Raises:
        UserError: none does, or several do; lists the columns.
    """
    kinds = component.listing("formats")
    for row in rows:
        columns = frozenset(map(str, row.values))
        found = [kind for kind in kinds if component.load("formats", kind).recognises(columns, row.values)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                row.place,
                f"several formats fit the columns {excerpt(sorted(columns))}",
                "one of " + ", ".join(found),
                f"{key}: [{{path: {name}, format: {found[0]}}}]",
            )
    columns = frozenset(map(str, rows[0].values))
    raise UserError(
        rows[0].place,
        f"no format fits the columns {excerpt(sorted(columns))}",
        "alpaca (instruction, output), sharegpt (conversations), messages (messages), "
        "prompt_completion (prompt, completion) or text (text)",
        "rename the columns, or name the format of your own code: format: package.module:Class",
    )


def prompt_of(example: Example) -> str:
    """What decides whether an example is held out: all before the last answer, or the text."""
    if isinstance(example, Text):
        return example.text
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
    return json.dumps([(message.role, message.content) for message in example.messages[:last]])


def is_held_out(prompt: str, share: float) -> bool:
    """A function of the prompt alone: equal prompts go the same way, and new rows do not move old ones."""
    return uniform("held out", prompt) < share


def truncated(sample: Sample, limit: int, row: Row) -> Sample:
    """The sample without what lies beyond `limit` tokens. No stop token is put at the cut.

    Raises:
        LongRow: nothing trained would be left.
    """
    if len(sample) <= limit:
        return sample
    targets = np.array(sample.targets[:limit])
    targets[-1] = NO_TARGET
    if not (targets != NO_TARGET).any():
        raise LongRow(row, sample, limit)
    return Sample(sample.input_ids[:limit], targets, sample.row, sample.group)


def _chunks(rows: Iterable[Row | BadRow], size: int) -> Iterator[list[Row | BadRow]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


# ---- the cache


def _cache_key(
    config: RunConfig, plan: list[_Part], renderer: ChatRenderer, limit: int | None, objective: Objective
) -> str:
    """A hash of all that decides the result: the content of the files, template, tokenizer, options, and the code
    itself.
    """
    data = config.data
    parts: dict[str, Any] = {
        "files": [
            (part.purpose, part.source.name, part.source.file.format, part.source.fingerprint()) for part in plan
        ],
        "options": [
            data.eval if isinstance(data.eval, float) else None,
            data.system,
            data.on_bad_row,
            data.on_long_row,
            limit,
        ],
        "objective": config.objective.model_dump(mode="json"),
        "template": renderer.template and [renderer.template.fingerprint, renderer.template.from_file],
        "tokenizer": tokenizer_fingerprint(renderer.tokenizer),
        "stop_ids": sorted(renderer.stop_ids),
        "code": _code_fingerprint(objective, [part.source.file.format for part in plan]),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of what decides a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = backend.to_str()
    else:
        model = getattr(tokenizer, "vocab_file", None)
        content = hashlib.sha256(Path(model).read_bytes()).hexdigest() if model else None
        state = json.dumps([sorted(tokenizer.get_vocab().items()), content])
    named = json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return hashlib.sha256((state + named).encode()).hexdigest()


def _code_fingerprint(objective: Objective, kinds: list[str]) -> str:
    """A hash of the source code that encodes: a changed line makes the cache anew, and nobody has to remember a version
    number.
    """
    import jinja2
    import tokenizers

    here = Path(__file__).parent
    files = [*sorted(Path(formats.__file__).parent.glob("*.py")), *sorted(here.glob("*.py"))]
    classes = [type(objective), *(component.load("formats", kind) for kind in kinds if kind != "auto")]
    files += [Path(name) for cls in classes if (name := inspect.getsourcefile(cls))]
    digest = hashlib.sha256(f"{tokenizers.__version__} {jinja2.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Samples]] | None:
    """meta.json and the samples by purpose; None where there is nothing, or a byte of it is not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sets = {purpose: Samples(folder / purpose) for purpose in meta["fingerprints"]}
    except (FileNotFoundError, ValueError):  # DamagedCache and a broken meta.json are ValueErrors
        return None
    if any(samples.fingerprint != meta["fingerprints"][purpose] for purpose, samples in sets.items()):
        return None
    return meta, sets


def _open(folder: Path, renderer: ChatRenderer) -> Prepared | None:
    """What was prepared before; None where there is nothing, or nothing whole."""
    found = _read(folder)
    if found is None:
        return None
    meta, sets = found
    ledger = Ledger.from_dict(meta["ledger"])
    return Prepared(
        sets["train"],
        sets.get("eval"),
        ledger,
        meta["rejected"],
        renderer,
        renderer.template,
        meta["system"],
        True,
        notes_of(ledger, meta["system"]),
    )


def notes_of(ledger: Ledger, system: str | None) -> list[str]:
    """What is said at the start of a run beside the ledger."""
    if system is None:
        return []
    return [
        f"all conversations have the system text {excerpt(system, 60)}: it is stored with the result, and luthier "
        "chat asks with it; a program of yours must do so too, for only so was it trained"
    ]


def _move(work: Path, folder: Path) -> None:
    """One rename puts the finished folder into place; a damaged one there is replaced, one by another process kept."""
    if folder.exists() and _read(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(work, folder)
    except OSError:
        if _read(folder) is None:
            raise
