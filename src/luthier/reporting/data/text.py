"""The report on the data for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from luthier.data.row_names import LISTED, short_names, some
from luthier.inspecting.data.duplicates import CONFLICTS, DUPLICATES, OVERLAP
from luthier.inspecting.data.report import DataReport, Fill
from luthier.inspecting.data.shown_row import ServedPrompt, ShownRow
from luthier.inspecting.data.token_view import (
    LEGEND_IN_COLOUR,
    LEGEND_IN_MARKS,
    LEGEND_OF_INSTEAD,
    LEGEND_OF_SHARED,
    SEPARATOR,
    STYLES,
    token_view,
)
from luthier.system.console import Screen
from luthier.system.words import counted, noun

WIDE = 110
"""Columns of a terminal from which the served prompt stands beside the row, not below it."""
BAR_CHARS = 40
LEAST_SHARE = 0.0005
DROPPED = 10
"""Dropped rows whose reason is printed."""


def print_report(report: DataReport, console: Console | None = None) -> None:
    """The rows, then the account and what was found."""
    out = print_rows(report.rows, console)
    parts = [
        report.ledger_lines,
        _dropped(report),
        _laws(report),
        _lengths(report),
        _fill(report.batches),
        _duplicates(report.duplicates),
    ]
    parts += [_languages(report.languages), [f"note: {note}" for note in report.notes], _after(report.after)]
    out.print("\n\n".join("\n".join(lines) for lines in map(list, parts) if lines), markup=False)


# ---- rows


def print_rows(rows: Sequence[ShownRow], console: Console | None = None) -> Console:
    """Each token by token. Returns what it was printed on."""
    out = console or Screen(highlight=False, soft_wrap=True)
    colour = out.is_terminal and out.color_system is not None and not out.no_color
    if any(row.tokens for row in rows):
        out.print(LEGEND_IN_COLOUR if colour else LEGEND_IN_MARKS, markup=False)
    if any(token.instead for row in rows for token in row.tokens):
        out.print(LEGEND_OF_INSTEAD, markup=False)
    if any(token.shares > 1 for row in rows for token in row.tokens):
        out.print(LEGEND_OF_SHARED, markup=False)
    for row in rows:
        out.print(_heading(row), markup=False, style="bold" if colour else None)
        if row.tokens:
            out.print(_row(row, colour, out.width if out.is_terminal else 0))
        out.print()
    return out


def _heading(row: ShownRow) -> str:
    tokens = f"{counted(len(row.tokens), 'token')}, {row.trained:,} trained" if row.tokens else "no tokens"
    return f"-- {row.row}{row.suffix}: {tokens} ({'; '.join(row.why)})"


def _row(row: ShownRow, colour: bool, width: int) -> RenderableType:
    view = token_view(row.tokens[: row.fits], colour)
    if row.fits is not None:
        view = Text("\n").join(
            [view, Text(row.over, style="bold" if colour else ""), token_view(row.tokens[row.fits :], colour)]
        )
    if not row.served:
        return view
    served = Text()
    for number, prompt in enumerate(row.served):
        served.append(_proof(prompt, len(row.served)) + "\n", style="bold" if colour else "")
        if number == 0 or not prompt.equal:  # a later one that is equal says again what stands beside it
            served.append(_served_text(prompt, colour))
            served.append("\n")
    served.rstrip()
    if width < WIDE:
        return Text("\n").join([view, served])
    half = (width - 4) // 2
    return Columns([Padding(view, (0, 2, 0, 0)), served], width=half, padding=(0, 1), equal=True)


def _proof(prompt: ServedPrompt, answers: int) -> str:
    of = f" for answer {prompt.answer} of {answers}" if answers > 1 else ""
    same = "the same ids as before the answer" if prompt.equal else "NOT the ids that stand before the answer"
    return f"served{of}: {counted(prompt.tokens, 'token')}, {same}"


def _served_text(prompt: ServedPrompt, colour: bool) -> Text:
    texts = [text.replace("\n", "↵\n") for text in prompt.text if text]
    if colour:
        return Text("".join(texts), style=STYLES["template"])
    words = ""
    for text in texts:
        words += (SEPARATOR if words and not words.endswith("\n") else "") + text
    return Text(words)


# ---- the whole


def _dropped(report: DataReport) -> Iterator[str]:
    """But for those that the error behind the report names."""
    said = (report.refused or "").splitlines()
    rows = [row for row in report.dropped if not any(line.startswith(f"  {row['where']}: found ") for line in said)]
    for row in rows[:DROPPED]:
        yield f"dropped  {row['where']}: {row['reason']}"
    if len(rows) > DROPPED:
        yield f"         and {len(rows) - DROPPED:,} more; --json has all"


def _laws(report: DataReport) -> Iterator[str]:
    for law, found in report.laws.items():
        rows = f": {counted(found['broken'], 'row')}, dropped ({some(found['rows'])})" if found["broken"] else ""
        yield f"{'pass  ' if found['holds'] else 'BROKEN'}  {law.replace('_', ' ')}{rows}"


def _lengths(report: DataReport) -> Iterator[str]:
    tokens = report.tokens
    yield (
        f"trained {100 * tokens['trained_share']:.1f} % of {tokens['trained'] + tokens['context']:,} tokens "
        "of the rows that are learned from"
    )
    for name in ("row", "answer"):
        of = report.lengths[name]
        yield (
            f"{'tokens of ' + ('a sample' if name == 'row' else 'what is trained in it'):<34}"
            f"min {of['min']:,}, median {of['median']:,}, 90 % {of['p90']:,}, 99 % {of['p99']:,}, max {of['max']:,}"
        )
    bins = report.lengths["row"]["histogram"]
    most = max(bar["rows"] for bar in bins)
    for bar in bins:
        yield f"{bar['from']:>7,} to {bar['to']:>7,}  {_bar(bar['rows'] / most):<{BAR_CHARS}} {bar['rows']:,}"


def _fill(fill: Fill) -> Iterator[str]:
    yield (
        f"batches: {counted(fill.steps, 'step')} of {counted(fill.global_batch_size, 'row')}, {fill.layout}, "
        f"at most {counted(fill.max_tokens, 'token')} in a forward pass"
        + (f", {fill.processes} processes" if fill.processes > 1 else "")
    )
    yield (
        f"  {100 * fill.fill:.0f} % full on average, {100 * fill.padding:.0f} % of positions are padding "
        f"({counted(fill.micro_batches, 'forward pass', 'forward passes')} of the first "
        f"{counted(fill.steps_looked_at, 'step')})"
    )
    if fill.longer_than_max:
        holds = noun(fill.longer_than_max, "forward pass holds", "forward passes hold")
        yield f"  {fill.longer_than_max:,} {holds} one sample that is longer than that: its bar ends with >"
    for step, batches in enumerate(fill.drawn, start=1):
        for number, lengths in enumerate(batches):
            name = f"step {step}" if number == 0 else ""
            cost = len(lengths) * max(lengths) if fill.layout == "padded" else sum(lengths)
            beyond = cost > fill.max_tokens
            edge, more = (">", f", {cost / fill.max_tokens:.1f} times the bound") if beyond else ("|", "")
            bar = _bar(min(cost / fill.max_tokens, 1.0))
            yield f"  {name:<9}|{bar:<{BAR_CHARS}}{edge} {counted(cost, 'token')}, {counted(len(lengths), 'sample')}{more}"


def _duplicates(found: dict[str, Any]) -> Iterator[str]:
    yield f"duplicates: {DUPLICATES}"
    for degree in ("exact", "normalised", "near"):
        yield _degree(degree, found[degree]["extra"], found[degree]["says"], _groups(found[degree]["listed"]))
    if left := found["candidates_left_out"]:
        yield f"{left:>7,} more {noun(left, 'pair')} may be near; they were not compared"
    yield f"conflicts: {CONFLICTS}"
    for degree in ("conflicts", "near_conflicts"):
        yield _degree(degree, found[degree]["groups"], found[degree]["says"], _groups(found[degree]["listed"]))
    if found["overlap"]:
        yield f"overlap: {OVERLAP}"
    for degree, one in found["overlap"].items():
        yield _degree(degree, one["rows"], one["says"], _groups(one["listed"]))


def _degree(name: str, count: int, says: str, listed: str) -> str:
    return f"{count:>7,} {name.replace('_', ' '):<14}  {says}" + (f" ({listed})" if listed else "")


def _after(found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    means = " -> ".join(f"{mean:.3f}" for mean in found["mean_by_pass"])
    yield f"after {found['run']}: mean loss of a row {means}, by pass over the data (each before the row was learned from)"
    if found["passes"] > 1:
        for course in ("learned", "forgotten", "never_learned"):
            names = [row["row"] for row in found["rows"] if row["course"] == course.replace("_", " ")]
            listed = f": {some(short_names(names))}" if names and course != "learned" else ""
            yield f"{found[course]:>7,} {noun(found[course], 'row')} {course.replace('_', ' ')}{listed}"
    else:
        yield "  one pass shows no course: a run of several tells rows that were learned from those that were not"
    if not found["suspects"]:
        return
    of, worst = counted(found["examined"], "row"), [one for one in found["suspects"] if one["score"] >= 0]
    if not worst:
        yield f"of {of} each answer is likelier behind its own prompt than behind another row's (--json has the figures)"
        return
    yield f"answers that fit their own prompt least, the likeliest mistakes first, of {of} (nats a token):"
    yield f"  {'row':<40} {'own prompt':>10} {'another':>10}   by pass"
    for suspect in worst:
        losses = " ".join("?" if loss is None else f"{loss:.2f}" for loss in suspect["losses"])
        yield f"  {suspect['row']:<40} {suspect['own_prompt']:>10.2f} {suspect['other_prompt']:>10.2f}   {losses}"


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return some(
        [" = ".join([*short_names(group[:LISTED]), *(["..."] if len(group) > LISTED else [])]) for group in groups]
    )


def _languages(found: dict[str, Any]) -> Iterator[str]:
    count = found["rows_looked_at"]
    of = counted(count, "row") if count == found["rows"] else f"a random {count:,} of {found['rows']:,} rows"
    yield f"languages of the answers, of {of}: " + ", ".join(
        f"{code} {100 * number / count:.3g} %" for code, number in list(found["languages"].items())[:8]
    )
    if found["scripts"]:
        yield "scripts, of all letters: " + ", ".join(
            f"{script} {100 * share:.1f} %" for script, share in found["scripts"].items() if share >= LEAST_SHARE
        )


def _bar(share: float) -> str:
    return "█" * -(-round(share * BAR_CHARS * 1000) // 1000)
