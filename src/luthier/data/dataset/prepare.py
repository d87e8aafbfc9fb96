"""From the data files to samples: read, recognised, rendered, encoded, checked, split, counted, and kept on disk by
content.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from luthier import component, formats
from luthier.component import ComponentConfig
from luthier.config import DataConfig, RunConfig
from luthier.data.chat import laws
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.dataset import cache
from luthier.data.dataset.cache import SHOWN_REFUSED, Account, Found, Store
from luthier.data.dataset.held_out import share_that_holds_out
from luthier.data.dataset.ledger import Ledger
from luthier.data.dataset.progress import RowProgress
from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.streamed import Counter
from luthier.data.dataset.workers import (
    PURPOSES,
    Chunk,
    Encoding,
    Work,
    can_fork,
    chunks_of,
    default_workers,
    encoders,
    limit_of,
    prompt_of,
)
from luthier.data.recognise import Part, RowParser, parts_of, row_parser_of
from luthier.data.steps.order import Mixture, Steps
from luthier.errors import BadRow, UserError, excerpt
from luthier.objectives import Objective
from luthier.system.words import counted
from luthier.types import Row

READ_WITH = ("jinja2", "tokenizers", "transformers", "sentencepiece", "pyarrow", "datasets")
"""Packages whose versions may decide the result."""
ROWS_LOOKED_AT = 10_000
"""Most rows that are read again to propose a share that holds out some."""
Watch = Callable[[int, float], None]
"""Is told how many rows are done, and what share of the data they are."""


@dataclass
class Prepared:
    """What a run learns from."""

    train: SampleSet
    eval: SampleSet | None
    ledger: Ledger
    rejected: list[dict[str, Any]]
    """what was dropped: {"where", "reason", "row"}; `row` holds the values as they were read"""
    renderer: ChatRenderer
    template: Template | None
    """None where the tokenizer has none and the data need none (plain text)"""
    system: str | None
    """the system text, where all trained conversations have the same one: an answer is served as it was trained only with it"""
    from_cache: bool
    parts: list[Part]
    """the files that were read, in their order"""
    mixture: Mixture | None = None
    """how the entries of `data.train` take turns, where they do not simply follow one another"""
    notes: list[str] = field(default_factory=list)
    """what is said at the start of a run beside the ledger"""
    refused: UserError | None = None
    """what a run says of rows that were left out here though the configuration does not say that they may be"""

    def steps(self, config: RunConfig) -> Steps:
        """Which of the examples each optimizer step takes."""
        training = config.training
        assert training.num_train_epochs is not None
        return Steps(
            self.train.examples,
            training.global_batch_size,
            config.seed,
            training.num_train_epochs,
            training.max_steps,
            self.mixture,
            self.train.streamed,
        )


def prepare(
    config: RunConfig,
    tokenizer: Any,
    *,
    context_length: int | None,
    objective: Objective,
    watch: Watch = lambda rows, share: None,
    refuse: bool = True,
) -> Prepared:
    """Encodes the data of a run, or takes them from the cache where nothing that matters has changed.

    Args:
        tokenizer: of transformers; fast or slow.
        context_length: tokens that the model can hold, None where it has no bound.
        watch: is told now and then how many rows are encoded, and what share that is; a RowProgress also how far a file is
            read before that.
        refuse: rows that cannot be used are an error, unless the configuration says that they are dropped. Without it they
            are left out while others are there to go on with, and `Prepared.refused` has the error. Not while streaming.

    Raises:
        UserError: a file, the template, or rows that cannot be used; all bad rows in one error.
    """
    data = config.data
    renderer = ChatRenderer(tokenizer, choose_template(tokenizer, data))
    parts = parts_of(config, objective.takes, *([watch.reading] if isinstance(watch, RowProgress) else []))
    encoding = Encoding(data, renderer, objective, limit_of(data, context_length))
    if data.streaming:
        sets, account, rejected = _streamed(encoding, parts, watch)
        return _prepared(encoding, parts, sets, _meta(account, data), rejected, from_cache=False)
    for part in parts:
        part.source.look()
    folder = cache.folder_of(_key(config, parts, encoding))
    before = cache.find(folder)
    found = before
    if found is None:
        with cache.only_one(folder):
            found = cache.find(folder) or _to_cache(encoding, parts, folder, watch, refuse)
        cache.remove_unused(keep=folder)
    prepared = _prepared(encoding, parts, found.sets, found.meta, found.rejected, from_cache=before is not None)
    if refuse and prepared.refused is not None:
        raise prepared.refused
    return prepared


def choose_template(tokenizer: Any, data: DataConfig) -> Template | None:
    """The chat template; None where the tokenizer has none, which is an error only once a conversation is met."""
    if data.chat_template == "auto" and not tokenizer.chat_template:
        return None
    return Template.choose(tokenizer, data.chat_template, data.on_system, data.enable_thinking)


def _to_cache(encoding: Encoding, parts: list[Part], folder: Path, watch: Watch, refuse: bool) -> Found:
    """Encodes into the cache, from where an earlier process was stopped."""
    with Store(cache.unfinished(folder)) as store:
        for done in _chunks(encoding, parts, store.account, watch):
            store.add(done.chunk)
        sets = store.complete()
        _close_account(encoding.data, parts, store.account, sets, refuse)
        store.finish(_meta(store.account, encoding.data), folder)
    found = cache.find(folder)
    if found is None:
        raise RuntimeError(f"{folder} cannot be read right after it was written")
    return found


def _streamed(
    encoding: Encoding, parts: list[Part], watch: Watch
) -> tuple[Mapping[str, SampleSet], Account, list[dict[str, Any]]]:
    """One pass that keeps nothing but the account and each sample's length."""
    account, rejected = Account(), list[dict[str, Any]]()
    counters = {purpose: Counter(purpose) for purpose in PURPOSES}
    for done in _chunks(encoding, parts, account, watch):
        for counter in counters.values():
            counter.add(done.chunk, done.part.source, done.parser, done.part.purpose, account.rows)
        rejected += done.chunk.rejected
        account.add(done.chunk)
    made = {purpose: counter.samples(encoding) for purpose, counter in counters.items()}
    sets = {purpose: samples for purpose, samples in made.items() if samples is not None}
    _close_account(encoding.data, parts, account, sets, refuse=True)
    return sets, account, rejected


@dataclass(frozen=True, slots=True)
class _Done:
    chunk: Chunk
    part: Part
    parser: RowParser | None


def _chunks(encoding: Encoding, parts: list[Part], account: Account, watch: Watch) -> Iterator[_Done]:
    """The chunks of all files that `account` does not know yet, in their order."""
    workers = encoding.data.num_workers
    if workers == "auto":
        workers = default_workers(sum(part.source.size_bytes for part in parts))
    with encoders(encoding, workers if can_fork() else 0) as encode:
        for number, part in enumerate(parts):
            if number < account.part:
                continue
            parser, _ = row_parser_of(part.source, part.source.rows(), f"data.{part.purpose}", encoding.data.system)
            if len(account.by_part) == number:
                account.begin_part()
            works = (Work(rows, parser, part.purpose) for rows in chunks_of(part.source.rows(account.rows)))
            for chunk in encode(works):
                yield _Done(chunk, part, parser)
                watch(account.ledger.rows_in, _share(parts, number))
            if account.rows == 0:
                raise UserError(
                    part.source.name,
                    "there are no rows in it",
                    "at least one row",
                    "put rows in it, or leave the file out",
                )
            purpose = {"train": "to learn from", "eval": "held out"}[part.purpose]
            account.end_part(
                {
                    "name": part.source.name,
                    "format": parser.kind if parser else "auto",
                    "recognised": parser is None or parser.recognised,
                    "rows": account.rows,
                    "purpose": ", ".join(filter(None, (purpose, part.source.note))),
                }
            )


def _share(parts: list[Part], number: int) -> float:
    """Of the data that is read, by the size of the files, while file `number` is."""
    sizes = [max(1, part.source.size_bytes) for part in parts]
    return (sum(sizes[:number]) + sizes[number] * parts[number].source.share_read) / sum(sizes)


def _close_account(
    data: DataConfig, parts: list[Part], account: Account, sets: Mapping[str, SampleSet], refuse: bool
) -> None:
    """What is said once all rows are known.

    Raises:
        UserError: rows cannot be used (with `refuse`), or none are left.
    """
    refused, empty = _all_refused_rows(account, data), _empty(data, parts, account.ledger, sets)
    if error := refused if refused is not None and (refuse or empty) else empty:
        raise error
    if "eval" in sets:
        trained, held_out = (np.asarray(sets[purpose].prompt_keys) for purpose in PURPOSES)
        account.ledger.held_out_prompts_also_trained = int(np.isin(held_out, trained).sum())
    account.ledger.laws = dict.fromkeys(laws.NAMES, 0) | account.ledger.laws
    account.ledger.check()


def _meta(account: Account, data: DataConfig) -> dict[str, Any]:
    system = account.systems[0] if len(account.systems) == 1 else ""
    refused = _all_refused_rows(account, data)
    return {
        "ledger": account.ledger.as_dict(),
        "system": system or None,
        "by_part": account.by_part,
        "refused": refused and refused.args,
    }


def _prepared(
    encoding: Encoding,
    parts: list[Part],
    sets: Mapping[str, SampleSet],
    meta: Mapping[str, Any],
    rejected: list[dict[str, Any]],
    from_cache: bool,
) -> Prepared:
    data, mixture, mixed = encoding.data, None, list[str]()
    if data.mixing != "concatenate":
        trained = dict.fromkeys((part.entry for part in parts), 0)
        for part, count in zip(parts, meta["by_part"], strict=True):
            trained[part.entry] += count["train"]
        entries = {part.entry: part for part in parts if part.purpose == "train" and trained[part.entry]}
        mixed = [part.source.file.path for part in entries.values()]
        weights = tuple(part.weight for part in entries.values())
        mixture = Mixture(tuple(trained[entry] for entry in entries), weights, data.mixing)
    return Prepared(
        sets["train"],
        sets.get("eval"),
        Ledger.from_dict(meta["ledger"]),
        rejected,
        encoding.renderer,
        encoding.renderer.template,
        meta["system"],
        from_cache,
        parts,
        mixture,
        notes_of(meta["system"], encoding.renderer.template, mixed, mixture),
        UserError(*meta["refused"]) if meta["refused"] else None,
    )


def notes_of(system: str | None, template: Template | None, mixed: list[str], mixture: Mixture | None) -> list[str]:
    """What is said at the start of a run beside the ledger; `mixed`: the entries in the mixture."""
    notes = []
    if system is not None:
        notes.append(
            f"all trained conversations have the system text {excerpt(system, 60)}: "
            "it is stored with the result; luthier chat serves with it, other tools do by the saved chat template"
        )
    if template is not None and "strftime_now" in template.source:
        stays = "strftime_now" in template.saved_source
        stored = (
            "asks for today's: an answer is served with another date than it was trained with" if stays else "has it"
        )
        notes.append(
            f"the chat template writes today's date: training has {template.clock[:10]} on every day, and the template "
            f"that is stored with the result {stored}"
        )
    if mixture is not None:
        turns = (
            f"{count:,} of {size:,} from {name}"
            for name, size, count in zip(mixed, mixture.sizes, mixture.counts, strict=True)
        )
        notes.append("an epoch has " + ", ".join(turns))
    return notes


def _all_refused_rows(account: Account, data: DataConfig) -> UserError | None:
    """One error for all rows that cannot be used: the first places, how many more, and what to write."""
    if not account.refused_rows:
        return None
    remedies = {row.fix for row in account.refused}
    common = remedies.pop() if len(remedies) == 1 else ""
    shown = [
        f"  {row.where}: found {row.found}"
        + (f"; expected {row.expected}" if row.expected else "")
        + (f" ({row.fix})" if row.fix and not common else "")
        for row in account.refused
    ]
    count, rows_in, long = account.refused_rows, account.ledger.rows_in, account.refused_long
    if count > SHOWN_REFUSED:
        where = "; luthier data with on_bad_row=drop on_long_row=drop and --json lists all" if count < rows_in else ""
        shown.append(f"  and {count - SHOWN_REFUSED:,} more{where}")
    head = f"{count:,} of {counted(rows_in, 'row')} cannot be used ({_percent(count / rows_in)}); nothing was trained"
    fixes = [common] if common else ["mend the rows"] if long < count else []
    if long < count and not (common and count == rows_in):  # dropping all of them leaves nothing to learn from
        fixes.append("on_bad_row=drop (they go to rejected.jsonl)")
    if long:
        truncate = " or truncate (their ends are lost)" if data.on_long_row == "error" else ""
        fixes.append(f"on_long_row=drop{truncate}")
        fixes.append("rows of fewer tokens" + (", or a larger max_length" if data.max_length is not None else ""))
    return UserError("", "\n".join([head, *shown]), "", ", or ".join(fixes))


def _percent(share: float) -> str:
    """Of a part that is there: `100 %` is all of it, and the smallest says that it is smaller."""
    if share < 0.0001:
        return "less than 0.01 %"
    digits = 0 if share == 1 else 1 if share >= 0.01 else 2
    return f"{min(100 * share, 99.9 if share < 1 else 100):.{digits}f} %"


def _empty(data: DataConfig, parts: list[Part], ledger: Ledger, sets: Mapping[str, SampleSet]) -> UserError | None:
    """The error of data of which nothing is left to learn from, or to hold out."""
    if not len(sets.get("train", ())):
        names = ", ".join(part.source.name for part in parts if part.purpose == "train")
        why = f"; of {ledger.rows_in:,}, {ledger.rows_dropped:,} were dropped and {ledger.rows_held_out:,} held out"
        return UserError(
            names,
            "no rows are left to learn from" + why,
            "at least one row",
            "without on_bad_row=drop and on_long_row=drop the reasons are listed",
        )
    if data.eval is not None and not len(sets.get("eval", ())):
        return UserError(
            "data.eval",
            f"{excerpt(data.eval)} holds out none of {counted(ledger.rows_trained, 'row')}",
            "at least one row",
            _more_held_out(data, parts),
        )
    return None


def _more_held_out(data: DataConfig, parts: list[Part]) -> str:
    """What to write where the share that is given holds out nothing of a few rows."""
    share = share_that_holds_out(islice(_prompts(data, parts), ROWS_LOOKED_AT))
    larger = f"data.eval={share:g}, or " if share is not None else ""
    return f"{larger}a file, or leave data.eval out"


def _prompts(data: DataConfig, parts: list[Part]) -> Iterator[str]:
    """Of the rows that are to be learned from and can be read."""
    for part in parts:
        if part.purpose == "train":
            parser, _ = row_parser_of(part.source, part.source.rows(), "data.train", data.system)
            for row in part.source.rows():
                with suppress(BadRow):
                    if parser is not None and isinstance(row, Row):
                        yield prompt_of(parser.parse(row))


# ---- what decides the result


def _key(config: RunConfig, parts: list[Part], encoding: Encoding) -> dict[str, Any]:
    """All that decides the result: the content of the files, template, tokenizer, options, and the code itself."""
    data, renderer = config.data, encoding.renderer
    files = [
        (part.purpose, part.source.name, str(part.source.file.format), part.source.fingerprint()) for part in parts
    ]
    return {
        "files": files,
        "options": [
            data.eval if isinstance(data.eval, float) else None,
            data.on_bad_row,
            data.on_long_row,
            [data.max_row_bytes, data.max_row_messages],
            data.system,
            encoding.limit,
        ],
        "objective": config.objective.model_dump(mode="json"),
        "template": renderer.template and [renderer.template.fingerprint, renderer.template.from_file],
        "tokenizer": tokenizer_fingerprint(renderer.tokenizer),
        "stop_ids": sorted(renderer.stop_ids),
        "code": _code_fingerprint(encoding.objective, [part.source.file.format for part in parts]),
    }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of what decides a tokenizer's ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = backend.to_str()
    else:  # it is what its class makes of its files and options
        cls, model = type(tokenizer), getattr(tokenizer, "vocab_file", None)
        content = hashlib.sha256(Path(model).read_bytes()).hexdigest() if model else None
        options = {
            key: str(value) for key, value in getattr(tokenizer, "init_kwargs", {}).items() if key != "name_or_path"
        }
        added = sorted((index, repr(token)) for index, token in tokenizer.added_tokens_decoder.items())
        state = json.dumps([sorted(tokenizer.get_vocab().items()), content, options, added, inspect.getsource(cls)])
    named = json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return hashlib.sha256((state + named).encode()).hexdigest()


def _code_fingerprint(objective: Objective, given: Sequence[str | ComponentConfig]) -> str:
    """A hash of the source code that encodes: a changed line makes the cache anew, and nobody has to remember a version
    number.
    """
    here = Path(__file__).parent.parent
    files = [*sorted(Path(formats.__file__).parent.glob("*.py")), *sorted(here.rglob("*.py"))]
    files += [here.parent / name for name in ("errors.py", "randomness.py", "system/strict_json.py", "types.py")]
    kinds = [one.kind for one in given if isinstance(one, ComponentConfig)]
    classes = [type(objective), *(component.load("formats", kind) for kind in kinds)]
    files += [Path(name) for cls in classes if (name := inspect.getsourcefile(cls))]
    digest = hashlib.sha256(json.dumps({name: version(name) for name in READ_WITH}).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
