"""What `luthier data` finds out, as plain values: for the terminal, for programs, and for a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from luthier.config import RunConfig
from luthier.data.chat import laws
from luthier.data.dataset.prepare import Prepared
from luthier.data.dataset.samples import Samples, SampleSet
from luthier.data.steps.layout import Layout, lay_out
from luthier.errors import UserError
from luthier.inspecting.data.duplicates import SAYS, Decode, decoder, find_duplicates
from luthier.inspecting.data.languages import language_mix
from luthier.inspecting.data.shown_row import ShownRow
from luthier.inspecting.data.shown_rows import Wanted, shown_rows, trained_shares
from luthier.inspecting.data.token_view import histogram
from luthier.system.files import write_file
from luthier.types import Ints

FORMAT = 1
"""Of the JSON; a key that is removed or changes its meaning raises it."""
MOST_LAID_OUT = 20_000
"""Rows whose batches are laid out for the picture."""
STEPS_DRAWN = 3
FEW_ROWS = 100_000
"""Up to so many samples the rows of other views are shown at once, for those who ask for them next."""
FILL_BINS = 10
FOUND = "found.json"


@dataclass(frozen=True)
class Fill:
    """How the first steps fill their micro-batches."""

    steps: int
    """of the whole run"""
    steps_looked_at: int
    global_batch_size: int
    """rows of a step"""
    max_tokens: int
    layout: Layout
    processes: int
    micro_batches: int
    fill: float
    """share of max_tokens that a micro-batch uses on average; one with a longer row is full"""
    padding: float
    """share of the positions that hold padding"""
    longer_than_max: int
    """micro-batches of one row that is longer than max_tokens"""
    histogram: list[int]
    """micro-batches by tenths of max_tokens; the last has the longer ones too"""
    drawn: list[list[list[int]]]
    """of the first steps: micro-batches, and the tokens of each of their samples"""


@dataclass
class DataReport:
    """All of it. `as_values` is what `--json` prints."""

    config: RunConfig
    ledger: dict[str, Any]
    laws: dict[str, dict[str, Any]]
    tokens: dict[str, Any]
    lengths: dict[str, Any]
    batches: Fill
    duplicates: dict[str, Any]
    languages: dict[str, Any]
    notes: list[str]
    rows: list[ShownRow]
    dropped: list[dict[str, str]]
    """{"where", "reason"} of every row that was left out"""
    after: dict[str, Any] | None = None
    """what a run made of each row (inspecting/data/row_losses.py)"""
    ledger_lines: list[str] = field(default_factory=list)
    refused: str | None = None
    """what a run on these data ends with, because of rows that were left out here"""

    def as_values(self) -> dict[str, Any]:
        parts = ("ledger", "dropped", "laws", "tokens", "lengths", "duplicates", "languages", "notes", "refused")
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in parts},
            "batches": asdict(self.batches),
            "rows": rows_as_values(self.rows),
            "after": self.after,
        }


def rows_as_values(rows: Sequence[ShownRow]) -> list[dict[str, Any]]:
    """As `--json` prints them."""
    return [{**asdict(row), "tokens": [{**asdict(token), "look": token.look} for token in row.tokens]} for row in rows]


def other_views(report: DataReport, prepared: Prepared, wanted: Wanted) -> list[tuple[Wanted, DataReport]]:
    """The report with the rows that may be asked for next: the tokenizer is there now, and takes seconds to import."""
    if prepared.train.examples > FEW_ROWS:
        return []
    limit, duplicates = report.lengths["limit"], report.duplicates
    return [
        (other, replace(report, rows=shown_rows(report.config, prepared, other, limit, duplicates, False)))
        for other in wanted.others()
    ]


def make_report(
    config: RunConfig,
    prepared: Prepared,
    tokenizer: Any,
    wanted: Wanted,
    *,
    limit: int | None,
    layout: Layout,
    max_tokens: int,
    processes: int = 1,
    every_view: bool = False,
) -> DataReport:
    """Looks at the data from all sides.

    Args:
        limit: tokens that a row may have, None for no bound.
        layout, max_tokens, processes: how the run lays out its batches.
        every_view: show first, worst and longest rows where none is asked for (a page has room).

    Raises:
        UserError: the wanted row is not there.
    """
    found = _found(prepared, decoder(tokenizer))
    ledger, lengths = prepared.ledger.as_dict(), prepared.train.lengths
    return DataReport(
        config=config,
        ledger=ledger,
        laws=_laws(prepared),
        tokens=_tokens(prepared),
        lengths={
            "row": _distribution(lengths),
            "answer": _distribution(prepared.train.trained),
            "limit": limit,
        },
        batches=fill_of(config, prepared, layout, max_tokens, processes),
        duplicates=found["duplicates"],
        languages=found["languages"],
        notes=list(prepared.notes),
        rows=shown_rows(config, prepared, wanted, limit, found["duplicates"], every_view),
        dropped=[{"where": row["where"], "reason": row["reason"]} for row in prepared.rejected],
        ledger_lines=prepared.ledger.lines(),
        refused=str(prepared.refused) if prepared.refused is not None else None,
    )


def _laws(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """law -> whether all rows that are used keep it, and the rows that do not, which are dropped."""
    return {
        law: {
            "says": laws.meaning(law),
            "holds": not broken,
            "broken": broken,
            "rows": prepared.ledger.breaking(law),
        }
        for law, broken in prepared.ledger.laws.items()
    }


def _tokens(prepared: Prepared) -> dict[str, Any]:
    ledger, shares = prepared.ledger, trained_shares(prepared.train)
    used = ledger.tokens_trained + ledger.tokens_context
    bins, _ = np.histogram(shares, bins=10, range=(0.0, 1.0))
    return {
        "trained": ledger.tokens_trained,
        "context": ledger.tokens_context,
        "trained_share": ledger.tokens_trained / max(used, 1),
        "rows_by_trained_share": [int(count) for count in bins],
    }


def _distribution(lengths: Ints) -> dict[str, Any]:
    shares = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}
    return {
        **{name: int(np.percentile(lengths, share, method="inverted_cdf")) for name, share in shares.items()},
        "mean": float(lengths.mean()),
        "histogram": [{"from": low, "to": high, "rows": count} for low, high, count in histogram(lengths, 20)],
    }


def fill_of(config: RunConfig, prepared: Prepared, layout: Layout, max_tokens: int, processes: int) -> Fill:
    """Lays out the first steps as the run would."""
    samples, steps, rows = prepared.learned["train"], prepared.steps(config), config.training.global_batch_size
    count = min(steps.total, steps.per_epoch, max(1, MOST_LAID_OUT // rows))
    costs, tokens, drawn = list[int](), 0, list[list[list[int]]]()
    for step in range(count):
        plan = samples.plan(samples.members_of(steps.indices(step)))
        lengths = plan.standing(layout).tolist()
        laid = lay_out(lengths, plan.named_groups, processes=processes, max_tokens=max_tokens, layout=layout)
        batches = [[lengths[place] for place in batch] for own in laid for batch in own if batch]
        costs += [len(batch) * max(batch) if layout == "padded" else sum(batch) for batch in batches]
        tokens += sum(lengths)
        if step < STEPS_DRAWN:
            drawn.append(batches)
    bins, _ = np.histogram(np.minimum(np.array(costs) / max_tokens, 1.0), bins=FILL_BINS, range=(0.0, 1.0))
    return Fill(
        steps=steps.total,
        steps_looked_at=count,
        global_batch_size=rows,
        max_tokens=max_tokens,
        layout=layout,
        processes=processes,
        micro_batches=len(costs),
        fill=sum(min(cost, max_tokens) for cost in costs) / (max_tokens * len(costs)),
        padding=1 - tokens / sum(costs),
        longer_than_max=sum(cost > max_tokens for cost in costs),
        histogram=[int(number) for number in bins],
        drawn=drawn,
    )


def _found(prepared: Prepared, decode: Decode) -> dict[str, Any]:
    """Duplicates and languages, which take seconds: kept beside the encoded data, which their folder names by content."""
    place = _on_disk(prepared.train).folder.parent / FOUND
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and {"duplicates", "languages"} <= kept.keys():
            return kept
    except (OSError, ValueError):  # not there, or cut off: it is made anew
        pass
    found = {
        "duplicates": _named(prepared, decode),
        "languages": asdict(language_mix(prepared.train, decode)),
    }
    with suppress(OSError, UserError):  # no room, or something else in its place: made anew the next time
        write_file(place, json.dumps(found, ensure_ascii=False).encode("utf-8", errors="backslashreplace"))
    return found


def _on_disk(samples: SampleSet) -> Samples:
    assert isinstance(samples, Samples), "the report is made of the cache"
    return samples


def _named(prepared: Prepared, decode: Decode) -> dict[str, Any]:
    """Duplicates with rows by their names."""
    found = find_duplicates(
        _on_disk(prepared.train), _on_disk(prepared.eval) if prepared.eval is not None else None, decode
    )
    out: dict[str, Any] = {
        degree: {
            "says": SAYS[degree],
            "groups": groups.groups,
            "rows": groups.rows,
            "extra": groups.extra,
            "listed": [[prepared.train.place(index) for index in group] for group in groups.listed],
        }
        for degree in ("exact", "normalised", "near", "conflicts", "near_conflicts")
        for groups in (getattr(found, degree),)
    }
    out["overlap"] = {
        degree: {
            "says": SAYS[degree],
            "rows": pairs.rows,
            "listed": [[prepared.eval.place(ours), prepared.train.place(other)] for ours, other in pairs.listed],
        }
        for degree, pairs in found.overlap.items()
        if prepared.eval is not None
    }
    out["rows_too_short_for_near"] = found.rows_too_short
    out["candidates_left_out"] = found.candidates_left_out
    return out
