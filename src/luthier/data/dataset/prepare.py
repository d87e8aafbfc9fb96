"""From the data files to samples: read, recognised, rendered, encoded, checked, split, counted, and kept on disk by
content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config import DataConfig, RunConfig
from luthier.data.chat import laws
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.dataset import cache
from luthier.data.dataset.blocks import in_blocks, no_blocks, size_of_block
from luthier.data.dataset.cache import Account, Found, Store
from luthier.data.dataset.identity import identity
from luthier.data.dataset.ledger import Ledger
from luthier.data.dataset.progress import RowProgress
from luthier.data.dataset.refusals import all_refused_rows, nothing_left
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
)
from luthier.data.readers import Limits
from luthier.data.recognise import Part, RowParser, parts_of, row_parser_of
from luthier.data.steps.order import Mixture, Steps
from luthier.errors import UserError, excerpt
from luthier.objectives import Objective

Watch = Callable[[int, float], None]
"""Is told how many rows are done, and what share of the data they are."""


@dataclass
class Prepared:
    """What a run learns from."""

    train: SampleSet
    eval: SampleSet | None
    """both row by row, as they are encoded"""
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
    learned: Mapping[str, SampleSet]
    """what a run learns from and holds out, by `PURPOSES`: the same, or blocks that are cut out of it"""
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
            self.learned["train"].examples,
            training.global_batch_size,
            config.seed,
            training.num_train_epochs,
            training.max_steps,
            self.mixture,
            self.learned["train"].neighbours,
        )


def prepare(
    config: RunConfig,
    tokenizer: Any,
    *,
    context_length: int | None,
    objective: Objective,
    watch: Watch = lambda rows, share: None,
    refuse: bool = True,
    limits: Limits | None = None,
) -> Prepared:
    """Encodes the data of a run, or takes them from the cache where nothing that matters has changed.

    Args:
        tokenizer: of transformers; fast or slow.
        context_length: tokens that the model can hold, None where it has no bound.
        watch: is told now and then how many rows are encoded, and what share that is; a RowProgress also how far a file is
            read before that.
        refuse: rows that cannot be used are an error, unless the configuration says that they are dropped. Without it they
            are left out while others are there to go on with, and `Prepared.refused` has the error. Not while streaming.
        limits: what rows and files may grow to; by default as the configuration says.

    Raises:
        UserError: a file, the template, or rows that cannot be used; all bad rows in one error.
    """
    data = config.data
    if objective.mismatched and data.streaming:
        raise UserError(
            "data.streaming",
            f"{config.objective.kind} puts prompts together with the answers to others, and of streamed rows none is kept",
            "encoded rows on disk",
            "data.streaming=false, or objective.loss=apo_zero_unpaired",
        )
    renderer = ChatRenderer(tokenizer, choose_template(tokenizer, data))
    told = {"told": watch.reading} if isinstance(watch, RowProgress) else {}
    parts = parts_of(config, objective.takes, limits=limits, **told)
    encoding = Encoding(data, renderer, objective, limit_of(data, context_length))
    if data.streaming:
        sets, account, rejected = _streamed(encoding, parts, watch)
        prepared = _prepared(encoding, parts, sets, _meta(account, data, parts), rejected, from_cache=False)
        return _with_notes(prepared, objective, refuse)
    for part in parts:
        part.source.look()
    folder = cache.folder_of(identity(config, parts, encoding))
    before = cache.find(folder)
    found = before
    if found is None:
        with cache.only_one(folder):
            found = cache.find(folder) or _to_cache(encoding, parts, folder, watch, refuse)
        cache.remove_unused(keep=folder)
    prepared = _prepared(encoding, parts, found.sets, found.meta, found.rejected, from_cache=before is not None)
    if refuse and prepared.refused is not None:
        raise prepared.refused
    return _with_notes(prepared, objective, refuse)


def _with_notes(prepared: Prepared, objective: Objective, refuse: bool) -> Prepared:
    """With what the objective says of all that it learns from. Raises UserError where it cannot, with `refuse`."""
    try:
        prepared.notes += objective.notes(prepared.train.plan())
    except UserError as error:
        if refuse:
            raise
        prepared.refused = prepared.refused or error
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
        store.finish(_meta(store.account, encoding.data, parts), folder)
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
    refused, empty = all_refused_rows(account, data, parts), nothing_left(data, parts, account.ledger, sets)
    if error := refused if refused is not None and (refuse or empty) else empty:
        raise error
    if "eval" in sets:
        trained, held_out = (np.asarray(sets[purpose].prompt_keys) for purpose in PURPOSES)
        account.ledger.held_out_prompts_also_trained = int(np.isin(held_out, trained).sum())
    account.ledger.laws = dict.fromkeys(laws.NAMES, 0) | account.ledger.laws
    account.ledger.check()


def _meta(account: Account, data: DataConfig, parts: list[Part]) -> dict[str, Any]:
    system = account.systems[0] if len(account.systems) == 1 else ""
    refused = all_refused_rows(account, data, parts)
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
    data, mixture, mixed, told = encoding.data, None, list[str](), list[str]()
    ledger, learned = Ledger.from_dict(meta["ledger"]), sets
    sizes, weights = tuple[int, ...](), tuple[float, ...]()
    if data.mixing != "concatenate":
        trained = dict.fromkeys((part.entry for part in parts), 0)
        for part, count in zip(parts, meta["by_part"], strict=True):
            trained[part.entry] += count["train"]
        entries = {part.entry: part for part in parts if part.purpose == "train" and trained[part.entry]}
        mixed = [part.source.file.path for part in entries.values()]
        weights = tuple(part.weight for part in entries.values())
        sizes = tuple(trained[entry] for entry in entries)
    if (pieces := encoding.objective.pieces) is not None:
        size = size_of_block(pieces, data.max_length, encoding.limit)
        learned = blocks = in_blocks(sets, size, pieces.joined, [0, *accumulate(sizes[:-1])])
        sizes = blocks["train"].by_source
        for name, count in zip(mixed, sizes, strict=False):  # no mixture: no names
            if not count:
                raise no_blocks(name)
        ledger.trains(int(blocks["train"].trained.sum()))
        told.append(blocks["train"].says())
    if data.mixing != "concatenate":
        mixture = Mixture(sizes, weights, data.mixing)
    return Prepared(
        sets["train"],
        sets.get("eval"),
        ledger,
        rejected,
        encoding.renderer,
        encoding.renderer.template,
        meta["system"],
        from_cache,
        parts,
        learned,
        mixture,
        [*told, *notes_of(meta["system"], encoding.renderer.template, mixed, mixture)],
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
