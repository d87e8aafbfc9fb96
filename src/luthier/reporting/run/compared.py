"""Runs side by side, for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from luthier.inference.comparison import figure
from luthier.inference.side_by_side import Row, Scored, SideBySide
from luthier.reporting import pages
from luthier.reporting.curves import Series, short_number, smoothed, svg_curve
from luthier.reporting.style import STYLE, escape
from luthier.system.words import counted

SHOWN_ANSWERS = 8
"""Requests whose answers are printed; JSON and the page have all."""
FEW_POINTS = 20
"""So many steps are drawn as they are, more of them smoothed."""
TITLES = {
    "config": ("What differs in the configuration", "nothing but names"),
    "data": ("What they learned from", "nothing is recorded"),
    "versions": ("What differs in versions, machine and decisions", "nothing"),
    "course": ("What came of them", "nothing is recorded"),
}
JUDGED = ("run", "answers", "score", "wins")
MARKED = "≠"
"""Beside a row in which the runs differ, where all rows are shown."""


def render_text(found: SideBySide) -> RenderableType:
    """For the terminal."""
    parts: list[RenderableType] = []
    for name, (title, nothing) in TITLES.items():
        rows: list[Row] = getattr(found, name)
        if not rows:
            parts.append(Text(f"{title}: {nothing}\n"))
            continue
        table = Table(title=title, title_justify="left", box=None, header_style="bold")
        for column in ("", "", *found.targets) if name in ("data", "course") else ("", *found.targets):
            table.add_column(Text(column), overflow="fold")
        for row in rows:
            mark = [MARKED if row.differs else ""] if name in ("data", "course") else []
            table.add_row(*mark, *map(Text, (row.name, *map(_value, row.values))))
        parts += [table, Text("")]
    if note := _left_out(found):
        parts.append(Text(f"{note}\n"))
    if any(one is not None for one in found.scored):
        parts.append(_scored_table(found))
    if found.judged:
        parts.append(_judged_table(found))
    if found.answers:
        parts.append(_answers_table(found))
    return Group(*parts)


def _left_out(found: SideBySide) -> str:
    if not found.left_out:
        return ""
    return f"{counted(found.left_out, 'row')} of {found.measured_on} left out, which not every run can use."


def _scored_table(found: SideBySide) -> Table:
    title = f"Loss a token on {found.measured_on}, with 95 % intervals over rows; differences to {found.targets[0]}"
    table = Table(title=Text(title), title_justify="left", box=None, header_style="bold")
    for column in ("run", "rows", "nll a token", "difference", "verdict"):
        table.add_column(column, overflow="fold")
    for target, one in zip(found.targets, found.scored, strict=True):
        table.add_row(*map(Text, (target, *_scored_cells(one))))
    return table


def _judged_table(found: SideBySide) -> Table:
    title = f"Answers judged by {found.judge}, with 95 % intervals over requests; wins over {found.targets[0]}"
    table = Table(title=Text(title), title_justify="left", box=None, header_style="bold")
    for column in JUDGED:
        table.add_column(column, overflow="fold")
    for cells in _judged_lines(found):
        table.add_row(*map(Text, cells))
    return table


def _judged_lines(found: SideBySide) -> list[tuple[str, ...]]:
    return [
        (target, f"{one.answers:,}", figure(one.score), figure(one.wins, percent=True) if one.wins is not None else "-")
        for target, one in zip(found.targets, found.judged, strict=True)
    ]


def _scored_cells(one: Scored | None) -> tuple[str, str, str, str]:
    if one is None:
        return "-", "-", "-", "it held out no rows"
    rows = f"{counted(one.rows, 'row')}, {counted(one.tokens, 'token')}"
    moved = figure(one.difference, sign=True) if one.difference is not None else "-"
    return rows, figure(one.nll_per_token), moved, one.verdict


def _answers_table(found: SideBySide) -> RenderableType:
    table = Table(title="Answers", title_justify="left", show_lines=True, expand=True)
    for column in ("request", *found.targets):
        table.add_column(Text(column), overflow="fold", ratio=1)
    for prompt, texts in found.answers[:SHOWN_ANSWERS]:
        table.add_row(*map(Text, (prompt, *texts)))
    more = len(found.answers) - SHOWN_ANSWERS
    return Group(table, *([Text(f"... and {more} more; --json and --html have all")] if more > 0 else []))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        return ", ".join(map(_value, value)) or "none"
    return short_number(value) if isinstance(value, float) else str(value)


# ---- the page


def write_compared(found: SideBySide, path: Path) -> None:
    """Writes the page; ask `pages.check_place` first. Raises EnvironmentProblem."""
    pages.write_page(path, render_page(found))


def render_page(found: SideBySide) -> str:
    """One page that needs nothing but itself, without scripts."""
    sections = [
        ("course", "Curves and figures", _curves(found) + _table(found, "course")),
        ("scored", f"Loss on {found.measured_on}", _scored_section(found)),
        *([("judged", f"Answers judged by {found.judge}", _judged_section(found))] if found.judged else []),
        ("answers", "Answers", _answers_section(found)),
        *((name, TITLES[name][0], _table(found, name)) for name in ("config", "data", "versions")),
    ]
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>{text}</section>'
        for key, title, text in sections
    )
    names = ", ".join(found.targets)
    note = f'<p class="hint">{escape(_left_out(found))}</p>' if found.left_out else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'{pages.MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(names)}: luthier compare</title><style>{STYLE}</style></head><body>"
        f'<header><div class="in"><p class="eyebrow">luthier compare</p><h1>{escape(names)}</h1>'
        f'<nav aria-label="Sections">{links}</nav></div></header><main>{note}{body}</main>'
        "<footer><p>Made by <code>luthier compare</code>; nothing on this page comes from anywhere else.</p></footer>"
        "</body></html>\n"
    )


def _curves(found: SideBySide) -> str:
    """Of more runs than there are colours a colour comes again; the values are named where the pointer is."""
    train, held_out = list[Series](), list[Series]()
    for number, target in enumerate(found.targets):
        points = found.losses[number]
        train.append(Series(target, points if len(points) < FEW_POINTS else smoothed(points), "line", number))
        held_out.append(Series(target, found.held_out_losses[number], "dots", number))
    return f'<div class="curves">{svg_curve(train, "Training loss")}{svg_curve(held_out, "Held-out loss")}</div>'


def _table(found: SideBySide, name: str) -> str:
    rows: list[Row] = getattr(found, name)
    if not rows:
        return f'<p class="missing">{escape(TITLES[name][1])}</p>'
    lines = [(row.name, *(_value(value) for value in row.values)) for row in rows]
    return _html_table(("", *found.targets), lines, [row.differs for row in rows])


def _html_table(head: Sequence[str], lines: Sequence[Sequence[str]], strong: Sequence[bool] = ()) -> str:
    columns = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = ""
    for number, (first, *others) in enumerate(lines):
        tag = "b" if strong and strong[number] else "span"
        cells = "".join(f"<td><{tag}>{escape(text)}</{tag}></td>" for text in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return f'<div class="card wide"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _scored_section(found: SideBySide) -> str:
    if all(one is None for one in found.scored):
        return '<p class="missing">None of them held out rows.</p>'
    first = escape(found.targets[0])
    hint = f'<p class="hint">Nats a token with 95 % intervals over rows; differences to {first}, paired by row.</p>'
    lines = [(target, *_scored_cells(one)) for target, one in zip(found.targets, found.scored, strict=True)]
    return hint + _html_table(("run", "rows", "nll a token", "difference", "verdict"), lines)


def _judged_section(found: SideBySide) -> str:
    first = escape(found.targets[0])
    hint = f'<p class="hint">Mean scores with 95 % intervals over requests; wins over {first}, where a tie counts half.</p>'
    return hint + _html_table(JUDGED, _judged_lines(found))


def _answers_section(found: SideBySide) -> str:
    if not found.answers:
        return '<p class="missing">Nothing was asked: --prompt TEXT asks each of them.</p>'
    out = ""
    for prompt, texts in found.answers:
        said = "".join(
            f'<div class="said"><h3>{escape(target)}</h3><p class="text" dir="auto">{escape(text)}</p></div>'
            for target, text in zip(found.targets, texts, strict=True)
        )
        out += f'<article class="card"><p class="text prompt" dir="auto">{escape(prompt)}</p><div class="pair">{said}</div></article>'
    return out
