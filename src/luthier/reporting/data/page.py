"""The report on the data as one page that needs nothing but itself, and reads without scripts as well."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.data.row_names import short_names
from luthier.inspecting.data.duplicates import CONFLICTS, DUPLICATES, OVERLAP
from luthier.inspecting.data.report import DataReport, Fill
from luthier.inspecting.data.shown_row import ServedPrompt, ShownRow
from luthier.inspecting.data.token_view import INSTEAD, SHARED, Look, Token
from luthier.reporting import pages
from luthier.reporting.data import pictures
from luthier.reporting.data.after_page import after_section
from luthier.reporting.data.style import DATA_STYLE, FILTER
from luthier.reporting.style import STYLE, escape
from luthier.system.words import counted, noun

MOST_TOKENS = 4_000
"""Of one row that are shown."""
MOST_LISTED = 100
"""Groups, pairs and names of rows that are listed; `--json` has them all."""
DEGREES = ("exact", "normalised", "near")
CONFLICTING = ("conflicts", "near_conflicts")
LOOKS: tuple[tuple[Look, str], ...] = (
    ("trained", "what the model learns to say"),
    ("context", "what it only reads"),
    ("template", "what the template writes"),
    ("special", "special tokens"),
)


def write_page(report: DataReport, path: Path) -> None:
    """Writes the page; ask `pages.check_place` first. Raises EnvironmentProblem."""
    pages.write_page(path, render_page(report))


def render_page(report: DataReport) -> str:
    """The page as text."""
    sections: list[tuple[str, str, Callable[[DataReport], str]]] = [
        ("ledger", "Ledger", _ledger),
        ("laws", "Laws", _laws),
        ("lengths", "Lengths and batches", _lengths),
        ("duplicates", "Duplicates", _duplicates),
        ("languages", "Languages", _languages),
        ("rows", "Rows, token by token", _rows),
    ]
    if report.after is not None:
        sections.insert(0, ("after", "After the run", after_section))
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>{build(report)}</section>'
        for key, title, build in sections
    )
    # The one script is named by its hash: text from the data could not run, even if it got past the escaping.
    script = base64.b64encode(hashlib.sha256(FILTER.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    files = ", ".join(Path(file.path).name for file in report.config.data.train)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'{pages.MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(files)}: luthier data</title><style>{STYLE}{DATA_STYLE}</style></head><body>"
        f'<header><div class="in"><p class="eyebrow">luthier data</p><h1>{escape(files)}</h1>'
        f'<p class="what">as <b>{escape(report.config.model.path)}</b> would learn it</p>'
        f'<nav aria-label="Sections">{links}</nav></div></header><main>{_tiles(report)}{body}</main>'
        "<footer><p>Made by <code>luthier data</code>; nothing on this page comes from anywhere else.</p></footer>"
        f"<script>{FILTER}</script></body></html>\n"
    )


def _tiles(report: DataReport) -> str:
    ledger, duplicates = report.ledger, report.duplicates
    broken = sum(not law["holds"] for law in report.laws.values())
    overlap = sum(part["rows"] for part in duplicates["overlap"].values())
    twice = sum(duplicates[degree]["extra"] for degree in ("exact", "normalised", "near"))
    tiles = [
        ("Rows that are learned", f"{ledger['rows_trained']:,}", f"of {ledger['rows_in']:,} that came in", ""),
        (
            "Tokens with loss",
            f"{100 * report.tokens['trained_share']:.0f} %",
            counted(report.tokens["trained"], "token"),
            "",
        ),
        ("Laws", "all hold" if not broken else f"{broken} broken", f"{len(report.laws)} on every row", _bad(broken)),
        ("Rows cut or dropped", f"{ledger['rows_cut'] + ledger['rows_dropped']:,}", "each is named below", ""),
        ("Duplicates", f"{twice:,}", "exact, normalised or near", ""),
    ]
    if duplicates["overlap"]:
        tiles.append(
            ("Held-out rows also trained", f"{overlap:,}", f"of {ledger['rows_held_out']:,} held out", _bad(overlap))
        )
    out = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd class="{look}">{escape(value)}<small>{escape(more)}</small></dd></div>'
        for name, value, more, look in tiles
    )
    return f'<dl class="tiles">{out}</dl>'


def _bad(count: int) -> str:
    return "worse" if count else "better"


# ---- rows


def _rows(report: DataReport) -> str:
    if not report.rows:
        return '<p class="missing">No rows were asked for.</p>'
    legend = "".join(
        f'<span><span class="tokens"><i class="{look}">{look}</i></span> {escape(words)}</span>'
        for look, words in LOOKS
    )
    if any(token.instead for row in report.rows for token in row.tokens):
        legend += f'<span><span class="tokens"><i class="trained">{INSTEAD}x</i></span> x is learned where another token stands</span>'
    box = (
        '<div class="filter" id="filter" role="search" hidden><label for="filter-text">Find rows with</label>'
        '<input id="filter-text" type="search" autocomplete="off" placeholder="words, a line, a reason">'
        '<output id="filter-count" for="filter-text"></output></div>'
    )
    hint = (
        '<p class="hint">Each row as the model gets it. Beside it what is served to get the answer, encoded on its own: '
        "its ids must be those that stand before the answer. Point at a token for its id.</p>"
    )
    articles = "".join(map(row_article, report.rows))
    return f'{hint}<div class="legend" aria-label="Legend">{legend}</div>{box}<div class="rows">{articles}</div>'


def row_article(row: ShownRow) -> str:
    """One row: why it is shown, its tokens, and what is served."""
    why = "".join(f"<li>{escape(reason)}</li>" for reason in row.why)
    counts = f"{counted(len(row.tokens), 'token')}, {row.trained:,} trained{row.suffix}"
    served = "".join(_served(prompt, len(row.served), folded=number > 0) for number, prompt in enumerate(row.served))
    beside = f'<div tabindex="0">{served}</div>' if served else ""
    tokens = _tokens(row.tokens[: row.fits])
    if row.fits is not None:
        tokens += f'<div class="label worse">{row.over}</div>{_tokens(row.tokens[row.fits :])}'
    return (
        f'<article class="card" data-row tabindex="-1"><h3>{escape(row.row)} <small>{counts}</small></h3>'
        f'<ul class="why">{why}</ul><div class="beside"><div tabindex="0"><div class="label">Trained</div>'
        f"{tokens}</div>{beside}</div></article>"
    )


def _served(prompt: ServedPrompt, answers: int, folded: bool) -> str:
    """What is served for one answer; `folded`: its text is shown on demand, as it says again what stands beside it."""
    of = f" for answer {prompt.answer} of {answers}" if answers > 1 else ""
    look, word = ("better", "the same ids") if prompt.equal else ("worse", "NOT the same ids")
    shown = "".join(f"<i>{_visible(text)}</i>" for text in prompt.text[:MOST_TOKENS] if text)
    label = f'Served{of}: {counted(prompt.tokens, "token")}, <span class="{look}">{word}</span>'
    text = f'<p class="tokens" dir="auto">{shown}</p>'
    if folded and prompt.equal:
        return f'<details class="served"><summary class="label">{label}</summary>{text}</details>'
    return f'<div class="label">{label}</div>{text}'


def _tokens(tokens: Sequence[Token]) -> str:
    shown = "".join(map(_token, tokens[:MOST_TOKENS]))
    more = f" … and {len(tokens) - MOST_TOKENS:,} more" if len(tokens) > MOST_TOKENS else ""
    return f'<p class="tokens" dir="auto">{shown}{more}</p>'


def _token(token: Token) -> str:
    instead = ""
    if token.instead is not None:
        tooltip = f"learned here: id {token.instead.id}; the text goes on with what follows"
        instead = f'<i class="trained" title="{tooltip}">{INSTEAD}{_visible(token.instead.text)}</i>'
    if not token.text:
        return instead
    many = f", the last of {token.shares} tokens that make this up" if token.shares > 1 else ""
    mark = f"<sub>{SHARED}{token.shares}</sub>" if many else ""
    return f'{instead}<i class="{token.look}" title="{token.id}{many}">{_visible(token.text)}{mark}</i>'


def _visible(text: str) -> str:
    return escape(text).replace("\n", "<u>↵</u>\n")


# ---- the account


def _ledger(report: DataReport) -> str:
    ledger = report.ledger
    without = ledger["rows_without_tokens"]
    words = noun(without, "row could not be used: its tokens", "rows could not be used: their tokens")
    unknown = f" {without:,} {words} are not known, and not among these." if without else ""
    soft, line = "var(--curve-1)", "var(--line)"
    rows = [
        ("trained", ledger["rows_trained"], "var(--curve-3)"),
        ("held out", ledger["rows_held_out"], soft),
        ("dropped", ledger["rows_dropped"], "var(--curve-2)"),
    ]
    tokens = [
        ("trained", ledger["tokens_trained"], "var(--curve-3)"),
        ("context", ledger["tokens_context"], line),
        ("held out", ledger["tokens_held_out"], soft),
        ("cut", ledger["tokens_cut"], "var(--curve-2)"),
        ("dropped", ledger["tokens_dropped"], "var(--bad)"),
    ]
    dropped = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td class="n">{len(names):,}</td><td>{_names(names)}</td></tr>'
        for reason, names in [*ledger["dropped"].items(), *([("cut", ledger["cut"])] if ledger["cut"] else [])]
    )
    table = (
        '<div class="wide"><table><thead><tr><th scope="col">Rows cut or dropped</th><th scope="col" class="n">rows</th>'
        f'<th scope="col">which</th></tr></thead><tbody>{dropped}</tbody></table></div>'
    )
    notes = "".join(f"<li>{escape(line)}</li>" for line in [*report.ledger_lines, *report.notes])
    reasons = "".join(
        f'<tr><th scope="row">{escape(row["where"])}</th><td>{escape(row["reason"])}</td></tr>'
        for row in report.dropped[:MOST_LISTED]
    )
    more = (
        f'<p class="hint">and {len(report.dropped) - MOST_LISTED:,} more</p>'
        if len(report.dropped) > MOST_LISTED
        else ""
    )
    why = (
        f'<details><summary>Why each row was dropped</summary><div class="in wide"><table class="stack"><tbody>{reasons}'
        f"</tbody></table>{more}</div></details>"
    )
    return (
        f'<p class="hint">{counted(ledger["rows_in"], "row")} and {counted(ledger["tokens_in"], "token")} came in; this is '
        f"all of them.{unknown}</p>"
        f'<div class="card">{pictures.stacked(rows, "Rows")}{pictures.stacked(tokens, "Tokens")}</div>'
        + (f'<div class="card">{table}</div>' if dropped else "")
        + (why if report.dropped else "")
        + f'<details><summary>As text</summary><div class="in"><ul class="lines">{notes}</ul></div></details>'
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return escape(", ".join(short_names(names[:MOST_LISTED])) + more)


def _laws(report: DataReport) -> str:
    lines = "".join(
        f'<li class="{"" if law["holds"] else "broken"}">{escape(name.replace("_", " "))}'
        + ("" if law["holds"] else f": {counted(law['broken'], 'row')} ({_names(law['rows'])}), dropped")
        + f'<span class="hidden">{"" if law["holds"] else " broken"}</span><small>{escape(law["says"])}</small></li>'
        for name, law in report.laws.items()
    )
    hint = '<p class="hint">Checked on every row when it is encoded. A row that breaks one is never trained.</p>'
    return f'{hint}<div class="card"><ul class="laws">{lines}</ul></div>'


def _lengths(report: DataReport) -> str:
    row, answer = report.lengths["row"], report.lengths["answer"]

    def caption(of: dict[str, Any]) -> str:
        return f"median {of['median']:,}, 99 % {of['p99']:,}, max {of['max']:,}"

    limit = report.lengths["limit"]
    bound = (
        f"A sample may have {counted(limit, 'token')}."
        if limit is not None
        else "Nothing bounds the length of a sample."
    )
    fill = report.batches
    long = fill.longer_than_max
    passes = counted(long, "forward pass holds", "forward passes hold")
    beyond = f" {passes} one sample that is longer than that, drawn in another colour." if long else ""
    return (
        f'<p class="hint">{bound} {counted(fill.steps, "step")} of {counted(fill.global_batch_size, "row")}, '
        f"{fill.layout}, at most {counted(fill.max_tokens, 'token')} in a forward pass.{beyond}</p>"
        f'<div class="curves">{pictures.histogram(row["histogram"], "Tokens of a sample", caption(row))}'
        f"{pictures.histogram(answer['histogram'], 'Tokens with loss in a sample', caption(answer), 2)}"
        f"{pictures.batches(fill)}{_fill(fill)}</div>"
    )


def _fill(fill: Fill) -> str:
    tenth = 100 // len(fill.histogram)
    bins = [
        {"from": place * tenth, "to": (place + 1) * tenth - 1, "rows": count}
        for place, count in enumerate(fill.histogram)
    ]
    bins[-1]["open"] = True
    caption = f"{fill.micro_batches:,} of the first {counted(fill.steps_looked_at, 'step')}"
    return pictures.histogram(
        bins, "How full a forward pass is", caption, 1, unit="% of the most tokens", of="forward passes"
    )


def _duplicates(report: DataReport) -> str:
    found = report.duplicates
    copies = [_degree(f"duplicates, {name}", found[name]["extra"], "row", found[name]) for name in DEGREES]
    conflicts = [_degree(_named(name), found[name]["groups"], "prompt", found[name]) for name in CONFLICTING]
    overlap = [
        _degree(f"overlap, {_named(name)}", one["rows"], "held-out row", one) for name, one in found["overlap"].items()
    ]
    counts = [("duplicates", DUPLICATES), ("conflicts", CONFLICTS), *([("overlap", OVERLAP)] if overlap else [])]
    says = "".join(f"<b>{name}</b>: {words}.<br>" for name, words in counts)
    short, left = found["rows_too_short_for_near"], found["candidates_left_out"]
    more = f"{counted(short, 'row is', 'rows are')} too short to be near another one. " if short else ""
    more += f"{counted(left, 'more pair')} may be near; they were not compared. " if left else ""
    more += "" if overlap else "Nothing is held out in these data."
    rows = "".join([*copies, *conflicts, *overlap])
    return (
        f'<p class="hint">{says}{more}</p>'
        f'<div class="card wide found"><table class="stack"><tbody>{rows}</tbody></table></div>'
    )


def _named(degree: str) -> str:
    return degree.replace("_", " ")


def _degree(name: str, count: int, unit: str, found: dict[str, Any]) -> str:
    groups = found["listed"]
    listed = ""
    if groups:
        items = "".join(f"<li>{_names(group)}</li>" for group in groups[:MOST_LISTED])
        left = len(groups) - MOST_LISTED
        more = f"<li>and {counted(left, 'group')} more</li>" if left > 0 else ""
        listed = f"<details><summary>which</summary><div class='in'><ul>{items}{more}</ul></div></details>"
    return (
        f'<tr><th scope="row">{escape(name)}<br><small>{escape(found["says"])}</small></th>'
        f'<td class="n"><b>{count:,}</b> <small>{noun(count, unit)}</small></td>'
        f"<td>{listed}</td></tr>"
    )


def _languages(report: DataReport) -> str:
    found = report.languages
    count = found["rows_looked_at"]
    of = counted(count, "row") if count == found["rows"] else f"a random {count:,} of {found['rows']:,} rows"
    languages = [(code, number / count, counted(number, "row")) for code, number in found["languages"].items()]
    scripts = [(name, share, "") for name, share in found["scripts"].items() if share >= 0.0005]
    hint = f'<p class="hint">Of what is trained, by {of}. A few words are too short to tell, and code is in no language.</p>'
    return (
        f'{hint}<div class="curves">{_meters("Languages", languages)}{_meters("Scripts of the letters", scripts)}</div>'
    )


def _meters(title: str, lines: Sequence[tuple[str, float, str]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td style="width:60%"><div class="meter"><b style="width:{100 * share:.2f}%">'
        f'</b></div></td><td class="n">{100 * share:.1f} % <small>{escape(more)}</small></td></tr>'
        for name, share, more in lines[:12]
    )
    return f'<div class="card"><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>'
