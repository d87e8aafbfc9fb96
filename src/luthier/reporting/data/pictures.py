"""The pictures of the page on the data: SVG without scripts, each with a title and a text for those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.inspecting.data.report import Fill
from luthier.reporting.curves import COLOURS, GRID, HEIGHT, INK, LEFT, RIGHT, TOP, WIDTH, short_number, ticks
from luthier.reporting.style import escape
from luthier.system.words import counted

BOTTOM = 40
MOST_BATCHES = 10
"""Micro-batches of one step that are drawn."""
BAR, GAP, NAME = 16, 6, 52


def _figure(title: str, caption: str, text: str, height: float, body: str, width: float = WIDTH) -> str:
    label = "picture-" + "-".join(title.lower().split())
    return (
        f'<figure class="curve"><figcaption><b>{escape(title)}</b><span>{escape(caption)}</span></figcaption>'
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{label}-t {label}-d" '
        'style="width:100%;height:auto;display:block" font-size="12" font-family="inherit">'
        f'<title id="{label}-t">{escape(title)}</title><desc id="{label}-d">{escape(text)}</desc>{body}</svg></figure>'
    )


def histogram(
    bins: Sequence[dict[str, Any]], title: str, caption: str, colour: int = 0, unit: str = "tokens", of: str = "rows"
) -> str:
    """How many of something there are by their size as upright bars; each says its numbers on hover. A last bin that is
    `open` holds all that is larger, too.
    """
    low, high = int(bins[0]["from"]), int(bins[-1]["to"]) + 1
    most = max(bar["rows"] for bar in bins)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (right - LEFT)

    out = []
    for value in filter(_whole, ticks(0, most, 4)):
        y = bottom - value / most * (bottom - TOP)
        out.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}" stroke-width="0.6"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">{escape(short_number(value))}</text>'
        )
    for bar in bins:
        start, end = x(bar["from"]), x(bar["to"] + 1)
        tall = bar["rows"] / most * (bottom - TOP)
        sizes = f"{bar['from']:,} {unit} and more" if bar.get("open") else f"{bar['from']:,} to {bar['to']:,} {unit}"
        tooltip = f"{sizes}: {bar['rows']:,} {of}"
        out.append(
            f'<g><rect x="{start + 0.5:.1f}" width="{max(end - start - 1, 0.5):.1f}" y="{bottom - tall:.1f}" '
            f'height="{tall:.1f}" rx="1.5" fill="{COLOURS[colour]}" fill-opacity="0.85"/>'
            f'<rect class="hit" x="{start:.1f}" width="{end - start:.1f}" y="{TOP}" height="{bottom - TOP}" '
            f'fill="{INK}" fill-opacity="0"/><title>{escape(tooltip)}</title></g>'
        )
    for value in filter(_whole, ticks(low, high - 1, 5)):
        out.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" text-anchor="middle" fill="{INK}">'
            f"{escape(short_number(value))}</text>"
        )
    out.append(
        f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{INK}"/>'
        f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end" fill="{INK}">{escape(unit)}</text>'
    )
    sizes = f"{low:,} {unit} and more" if bins[-1].get("open") else f"{low:,} to {high - 1:,} {unit}"
    return _figure(title, caption, f"from {sizes}; at most {most:,} {of} in a bar", HEIGHT, "".join(out))


def _whole(value: float) -> bool:
    return float(value).is_integer()


def batches(fill: Fill) -> str:
    """The first steps: a bar for each forward pass, a piece of it for each row, the bound as a line."""
    width, room = WIDTH, WIDTH - NAME - 86
    out, y = list[str](), 8.0
    for step, micro_batches in enumerate(fill.drawn, start=1):
        out.append(f'<text x="0" y="{y + BAR - 4:.1f}" fill="{INK}">step {step}</text>')
        for lengths in micro_batches[:MOST_BATCHES]:
            out.append(_bar(fill, lengths, y, room))
            y += BAR + GAP
        if len(micro_batches) > MOST_BATCHES:
            out.append(
                f'<text x="{NAME}" y="{y + 11:.1f}" fill="{INK}">and {len(micro_batches) - MOST_BATCHES:,} more</text>'
            )
            y += BAR + GAP
        y += GAP
    edge = NAME + room
    out.append(
        f'<line x1="{edge}" x2="{edge}" y1="2" y2="{y:.1f}" stroke="{INK}" stroke-dasharray="3 3"/>'
        f'<text x="{edge}" y="{y + 14:.1f}" text-anchor="middle" fill="{INK}">{fill.max_tokens:,} tokens</text>'
    )
    caption = f"{100 * fill.fill:.0f} % full, {100 * fill.padding:.0f} % padding"
    text = f"{fill.micro_batches:,} forward passes of {fill.steps_looked_at:,} steps"
    return _figure("How the first steps fill their forward passes", caption, text, y + 22, "".join(out), width)


def _bar(fill: Fill, lengths: Sequence[int], y: float, room: float) -> str:
    """One forward pass; one of a row beyond the bound is as long as one can be, and of another colour. Padded, a row is
    drawn with its padding behind it.
    """
    padded = fill.layout == "padded"
    cost = len(lengths) * max(lengths) if padded else sum(lengths)
    beyond = cost > fill.max_tokens
    scale = room / max(fill.max_tokens, cost)
    out, x = [], float(NAME)
    for place, length in enumerate(lengths):
        wide = (max(lengths) if padded else length) * scale
        out.append(
            f'<g><rect x="{x:.2f}" y="{y:.1f}" width="{max(wide - 1, 0.6):.2f}" height="{BAR}" rx="2" '
            f'fill="{GRID}" fill-opacity="0.5"/><rect x="{x:.2f}" y="{y:.1f}" width="{max(length * scale - 1, 0.6):.2f}" '
            f'height="{BAR}" rx="2" fill="{COLOURS[1 if beyond else 0]}" '
            f'fill-opacity="{0.9 if place % 2 == 0 else 0.6}"/>'
            f"<title>a row of {counted(length, 'token')}{', more than the bound' if beyond else ''}</title></g>"
        )
        x += wide
    rows = counted(len(lengths), "row")
    return "".join(out) + f'<text x="{NAME + room + 8}" y="{y + BAR - 4:.1f}" fill="{INK}">{cost:,} / {rows}</text>'


def stacked(parts: Sequence[tuple[str, int, str]], title: str) -> str:
    """One bar of several parts (name, count, CSS colour), with a legend that says the numbers."""
    total = sum(count for _, count, _ in parts) or 1
    pieces, x = [], 0.0
    for name, count, colour in parts:
        wide = 1000 * count / total
        if count:
            pieces.append(
                f'<rect x="{x:.2f}" width="{max(wide - 1.5, 1):.2f}" y="0" height="26" fill="{colour}">'
                f"<title>{escape(name)}: {count:,}</title></rect>"
            )
        x += wide
    legend = "".join(
        f'<li><span class="key" style="background:{colour}"></span>{escape(name)} <b>{count:,}</b> '
        f"<small>{100 * count / total:.3g} %</small></li>"
        for name, count, colour in parts
        if count
    )
    return (
        f'<div class="stacked"><h3>{escape(title)}</h3><svg viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(pieces)}</svg><ul>{legend}</ul></div>'
    )


def spark(values: Sequence[float | None], low: float, high: float) -> str:
    """A row's loss by epoch, as a small line."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    span, step = max(high - low, 1e-9), 64 / max(len(values) - 1, 1)
    points = [(4 + index * step, 21 - 18 * (min(max(value, low), high) - low) / span) for index, value in known]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{COLOURS[1]}"/>' for x, y in points)
    course = " → ".join(f"{value:.2f}" for _, value in known)
    return (
        f'<svg class="spark" viewBox="0 0 72 24" role="img" aria-label="loss {course}"><polyline points="{path}" fill="none" '
        f'stroke="{COLOURS[1]}" stroke-width="1.6"/>{dots}</svg>'
    )
