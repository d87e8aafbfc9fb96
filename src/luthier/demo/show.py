"""What the demo shows: a table with intervals, a picture, three answers side by side, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from luthier.demo.judge import TARGETS, Outcome, Share, judge, strip_fences

SHOWN_ANSWERS = 3
BAR_COLUMNS = 40
MOST_LINES = 12
"""Of an answer on the screen: a base model rambles."""
ASK = "tune qwen3-8b on tickets.csv with QLoRA, two epochs, lr 2e-4"


def everything(screen: Console, outcomes: Sequence[Outcome], folder: Path) -> None:
    """The end of the demo, on the screen."""
    screen.print()
    for index, item in enumerate(choose_examples(outcomes)):
        screen.print(side_by_side(*item, number=index + 1))
    screen.print(table(outcomes))
    screen.print(bars(outcomes))
    screen.print(
        "exact: the parser reads the same configuration; fields: of all values set in the wanted or the given answer, those\n"
        "that agree. Thin lines: 95 % intervals. The base was asked the same and knows nothing of luthier.",
        highlight=False,
    )
    screen.print(verdict(outcomes), highlight=False)
    target = shlex.quote(str(folder))
    screen.print(
        f"\npicture: {folder / 'demo.svg'}   figures: {folder / 'demo.json'}   report: {folder / 'report.html'}\n\nnext\n"
        f'  luthier chat {target} --prompt "{ASK}"\n'
        f'  luthier init --ask "{ASK}" --writer {target}',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def per_cent(share: Share) -> str:
    """`73 % [64, 81]`."""
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def table(outcomes: Sequence[Outcome]) -> Table:
    """Base beside tuned, with intervals and targets."""
    out = Table(title="judged by luthier's own parser", title_justify="left")
    for name in ("requests", "measure", "base", "tuned", "target"):
        out.add_column(name, justify="left" if name in ("requests", "measure") else "right")
    for item in outcomes:
        target = TARGETS[item.name]
        out.add_row(
            f"{item.base.requests} with {item.name}",
            "exact",
            per_cent(item.base.exact),
            per_cent(item.tuned.exact),
            f"{100 * target.exact:.0f} %",
        )
        wanted = "" if target.fields is None else f"{100 * target.fields:.0f} %"
        out.add_row("", "fields", per_cent(item.base.fields), per_cent(item.tuned.fields), wanted, end_section=True)
    return out


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, str, Share]]:
    """(label, base or tuned, share) of each bar, from the top."""
    return [
        (f"{item.name}, {measure}", who, getattr(getattr(item, who), measure))
        for item in outcomes
        for measure in ("exact", "fields")
        for who in ("base", "tuned")
    ]


def bars(outcomes: Sequence[Outcome]) -> Text:
    """The picture for a terminal: full blocks up to the share, a thin line over the interval."""
    out = Text()
    for label, who, share in _rows(outcomes):
        cells = ["█" if column < round(share.value * BAR_COLUMNS) else " " for column in range(BAR_COLUMNS + 1)]
        for column in range(round(share.low * BAR_COLUMNS), round(share.high * BAR_COLUMNS) + 1):
            cells[column] = "▓" if cells[column] == "█" else "─"
        out.append(f"{label if who == 'base' else '':<26}{who:<7}")
        out.append("".join(cells), style="green" if who == "tuned" else "yellow")
        out.append(f"{100 * share.value:4.0f} %\n")
    return out


def svg(outcomes: Sequence[Outcome]) -> str:
    """The same picture as a file: bars with their 95 % intervals, readable on light and dark grounds."""
    left, width, row, gap = 230, 420, 20, 12
    parts, y = [], 44
    for number, (label, who, share) in enumerate(_rows(outcomes)):
        colour = "#2a9d6f" if who == "tuned" else "#c98a1b"
        middle = y + row / 2 - 2
        x, low, high = (left + width * value for value in (share.value, share.low, share.high))
        if who == "base":
            parts.append(f'<text x="{left - 66}" y="{middle + 4:g}" text-anchor="end">{escape(label)}</text>')
        parts += [
            f'<text x="{left - 8}" y="{middle + 4:g}" text-anchor="end">{who}</text>',
            f'<rect x="{left}" y="{y}" width="{max(x - left, 1):.1f}" height="{row - 4}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle:g}H{high:.1f}M{low:.1f} {middle - 4:g}v8M{high:.1f} {middle - 4:g}v8" stroke="#666" '
            f'stroke-width="1.5"/>',
            f'<text x="{left + width + 12}" y="{middle + 4:g}">{escape(per_cent(share))}</text>',
        ]
        y += row + (gap if number % 2 else 0)
    axis = "".join(
        f'<path d="M{left + width * tick / 4:g} 36V{y}" stroke="#bbb" stroke-width="0.5"/>'
        f'<text x="{left + width * tick / 4:g}" y="{y + 16}" text-anchor="middle">{25 * tick} %</text>'
        for tick in range(5)
    )
    title = "Requests turned into configurations, before and after tuning (95 % intervals)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {y + 28}" width="800" height="{y + 28}" role="img" '
        f'aria-label="{title}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#777"><text x="12" y="20" font-size="14">{title}</text>'
        f"{axis}{''.join(parts)}</svg>\n"
    )


def choose_examples(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, str]]:
    """Three (request, wanted, before, after): the first of each set, and the first that the tuned model got wrong, if it did."""
    firsts = [(item, 0) for item in outcomes]
    rest = [(item, index) for item in outcomes for index in range(1, len(item.pairs))]
    wrong = [(item, index) for item, index in rest if not judge(item.pairs[index].yaml, item.after[index]).exact]
    chosen = [*firsts, *wrong, *rest][:SHOWN_ANSWERS]
    return [
        (item.pairs[index].request, item.pairs[index].yaml, item.before[index], item.after[index])
        for item, index in chosen
    ]


def side_by_side(request: str, wanted: str, before: str, after: str, number: int) -> Panel:
    """One request, what the base said, and what the tuned model says."""
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    found = judge(wanted, after)
    state = "exact" if found.exact else f"{found.right} of {found.fields} fields right"
    grid.add_row(Text("base", style="bold"), Text(f"tuned ({state})", style="bold"))
    grid.add_row(Text(_short(before)), Text(_short(strip_fences(after))))
    if not found.exact:
        grid.add_row("", Text(f"\nwanted\n{wanted}", style="dim"))
    return Panel(grid, title=Text(f"{number}. {request}"), title_align="left", border_style="dim")


def _short(text: str) -> str:
    lines = text.strip().splitlines() or ["(nothing)"]
    return "\n".join(lines[:MOST_LINES] + (["..."] if len(lines) > MOST_LINES else []))


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether the targets were reached, in one line a set."""
    lines = [f"{item.name}: {'every target reached' if item.met else 'below target'}" for item in outcomes]
    return "\n".join(lines)
