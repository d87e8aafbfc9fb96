"""Curves as SVG, without scripts: for the report and for notebooks.

matplotlib draws with one set of colours and says nothing on hover, and is no small thing to install; Vega puts a library of
scripts on every page. A page of a run opens anywhere, offline, light and dark, without scripts, and is small.

Colours are CSS variables with a value of their own, so that a page may set them (light, dark) and a notebook need not.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.reporting.style import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 12, 40
MAX_DRAWN = 600
"""Most points of a line that are drawn; of more, each stretch keeps its lowest and its highest."""
MAX_HOVERS = 160
COLOURS = ("var(--curve-1, #2f6fde)", "var(--curve-2, #d9480f)", "var(--curve-3, #2b8a3e)")
INK, GRID = "var(--curve-ink, currentColor)", "var(--curve-grid, #8888)"

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: points (x, y) in the order of x; points whose y is not finite are left out."""

    name: str
    points: Sequence[Point]
    style: Literal["line", "faint", "dots"] = "line"
    """`dots` are joined by a dashed line"""
    colour: int = 0
    """index into COLOURS"""


def smoothed(points: Sequence[Point]) -> list[Point]:
    """An exponential mean over about a twentieth of the points, without the bias of its start (as in Adam)."""
    decay = 1.0 - 1.0 / max(3.0, len(points) / 20)
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = decay * mean + (1 - decay) * y, decay * weight + (1 - decay)
        out.append((x, mean / weight))
    return out


def short_number(value: float) -> str:
    """`0.125`, `12.5`, `1,200`, `12k`, `2.0e-4`: at most about six characters."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.3g}{unit}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that lie in [low, high], about `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def svg_curve(
    series: Sequence[Series],
    title: str,
    *,
    x_label: str = "step",
    format_y: Callable[[float], str] = short_number,
    from_zero: bool = False,
) -> str:
    """An HTML `<figure>` with the curves in one SVG: axes, ticks, a legend, and a title on hover for each place.

    Args:
        series: the curves; empty ones are left out. With nothing to draw the figure says so.
        title: plain text, escaped here.
        x_label: what the horizontal axis counts.
        format_y: how a vertical value is written.
        from_zero: whether the vertical axis begins at 0.
    """
    kept = [Series(one.name, points, one.style, one.colour) for one in series if (points := _finite(one.points))]
    if not kept:
        return (
            f'<figure class="curve"><figcaption><b>{escape(title)}</b></figcaption>'
            '<p class="missing">Nothing was recorded.</p></figure>'
        )
    frame = _Frame(kept, from_zero)
    label = f"curve-{next(_numbers)}"
    summary = "; ".join(
        f"{one.name} from {format_y(one.points[0][1])} to {format_y(one.points[-1][1])}" for one in kept
    )
    body = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{label}-t {label}-d" '
        'style="width:100%;height:auto;display:block" font-size="12" font-family="inherit">',
        f'<title id="{label}-t">{escape(title)}</title><desc id="{label}-d">{escape(summary)}</desc>',
        _axes(frame, x_label, format_y),
        *(_drawn(one, frame) for one in kept),
        _hovers(kept, frame, x_label, format_y),
        "</svg>",
    ]
    return (
        f'<figure class="curve"><figcaption><b>{escape(title)}</b>{_legend(kept)}</figcaption>{"".join(body)}</figure>'
    )


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


class _Frame:
    """The plane of the data and its place in the picture."""

    def __init__(self, series: Sequence[Series], from_zero: bool) -> None:
        xs = [x for one in series for x, _ in one.points]
        ys = [y for one in series for _, y in one.points]
        self.x_low, self.x_high = min(xs), max(xs)
        if self.x_high == self.x_low:
            self.x_low, self.x_high = self.x_low - 1, self.x_high + 1
        low, high = min(ys), max(ys)
        if from_zero:
            low = min(low, 0.0)
        room = (high - low) * 0.06 or max(abs(high), 1e-12) * 0.1
        self.y_low = low if from_zero and low == 0 else low - room
        self.y_high = high + room

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_label: str, format_y: Callable[[float], str]) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = []
    for value in ticks(frame.y_low, frame.y_high, 5):
        y = frame.y(value)
        out.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}" stroke-width="0.6"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">{escape(format_y(value))}</text>'
        )
    for value in ticks(frame.x_low, frame.x_high, 5):
        if x_label == "step" and value != round(value):
            continue
        x = frame.x(value)
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="{INK}" stroke-width="1"/>'
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle" fill="{INK}">'
            f"{escape(short_number(value))}</text>"
        )
    out.append(
        f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{INK}" stroke-width="1"/>'
        f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end" fill="{INK}">{escape(x_label)}</text>'
    )
    return "".join(out)


def _drawn(one: Series, frame: _Frame) -> str:
    colour = COLOURS[one.colour % len(COLOURS)]
    shown = one.points if len(one.points) <= MAX_DRAWN else _thinned(one.points)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in shown)
    if one.style == "dots" or len(one.points) == 1:
        line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4" stroke-dasharray="4 3"/>'
        return line + "".join(
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.4" fill="{colour}"/>' for x, y in shown
        )
    look = 'stroke-width="1.1" stroke-opacity="0.38"' if one.style == "faint" else 'stroke-width="2"'
    ends = 'stroke-linejoin="round" stroke-linecap="round"'
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {look} {ends}/>'


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The lowest and the highest point of each stretch, in their order: spikes stay visible."""
    stretch = math.ceil(len(points) / (MAX_DRAWN // 2))
    out = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        out += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return out


def _hovers(series: Sequence[Series], frame: _Frame, x_label: str, format_y: Callable[[float], str]) -> str:
    """Upright strips that show, where the pointer is, the values of all curves that have one there."""
    places = sorted({x for one in series for x, _ in one.points})
    places = places[:: math.ceil(len(places) / MAX_HOVERS)]
    edges = [frame.x(x) for x in places]
    middles = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(edges)), WIDTH - RIGHT]
    xs = [[x for x, _ in one.points] for one in series]
    out = []
    for place, left, right in zip(places, middles, middles[1:], strict=False):
        values = [
            f"{one.name} {format_y(found)}"
            for one, known in zip(series, xs, strict=True)
            if (found := _at(one.points, known, place)) is not None
        ]
        tooltip = f"{x_label} {place:g}: {', '.join(values)}"
        out.append(
            f'<rect class="hit" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0.5):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}" '
            f'fill="{INK}" fill-opacity="0"><title>{escape(tooltip)}</title></rect>'
        )
    return "".join(out)


def _at(points: Sequence[Point], xs: Sequence[float], place: float) -> float | None:
    index = bisect_left(xs, place)
    return points[index][1] if index < len(xs) and xs[index] == place else None


def _legend(series: Sequence[Series]) -> str:
    if len(series) == 1:
        return ""
    entries = []
    for one in series:
        colour = COLOURS[one.colour % len(COLOURS)]
        mark = {
            "line": '<path d="M1 6H21" stroke-width="2.4"/>',
            "faint": '<path d="M1 6H21" stroke-width="1.4" stroke-opacity="0.45"/>',
            "dots": '<path d="M1 6H21" stroke-width="1.4" stroke-dasharray="4 3"/><circle cx="11" cy="6" r="2.6"/>',
        }[one.style]
        entries.append(
            f'<span style="white-space:nowrap"><svg width="22" height="12" aria-hidden="true" fill="{colour}" '
            f'stroke="{colour}">{mark}</svg> {escape(one.name)}</span>'
        )
    return f'<span style="display:inline-flex;flex-wrap:wrap;gap:0 .9em">{"".join(entries)}</span>'
