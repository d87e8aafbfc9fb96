"""The part of the page on the data that says what a run made of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.inspecting.data.report import DataReport
from luthier.reporting.curves import Series, svg_curve
from luthier.reporting.data import pictures
from luthier.reporting.style import escape
from luthier.system.words import counted

MOST_ROWS = 100
"""Rows of one kind that are listed; `--json` has every row."""


def after_section(report: DataReport) -> str:
    """Suspects first, then the rows by the course of their loss."""
    found = report.after
    assert found is not None
    finite = [loss for row in found["rows"] for loss in row["losses"] if loss is not None]
    bounds = (min(finite), max(finite)) if finite else (0.0, 1.0)
    curve = svg_curve(
        [Series("mean", [(number, mean) for number, mean in enumerate(found["mean_by_pass"], start=1)])],
        "Mean loss of a row, before it was learned from",
        x_label="pass",
    )
    return (
        f'<p class="hint">What <code>{escape(found["run"])}</code> made of each row. Loss is in nats a trained token.</p>'
        f"{_suspects(found, bounds)}{_courses(found, bounds)}"
        f'<div class="curves">{curve if found["passes"] > 1 else ""}</div>'
    )


def _suspects(found: dict[str, Any], bounds: tuple[float, float]) -> str:
    if not found["suspects"]:
        return '<p class="missing">The model was not asked which answers fit their prompts.</p>'
    lines = "".join(
        f'<tr data-row><th scope="row">{escape(one["row"])}</th><td class="n">{one["own_prompt"]:.2f}</td>'
        f'<td class="n">{one["other_prompt"]:.2f}</td><td class="n">{one["score"]:z.2f}</td>{_course(one["losses"], bounds)}</tr>'
        for one in found["suspects"][:MOST_ROWS]
    )
    head = _head("Row", "own prompt", "another row\u2019s", "score", "by pass", "")
    return (
        f'<div class="card wide"><h3>Answers that fit their prompts least, of {counted(found["examined"], "row")}</h3>'
        '<p class="hint">The likeliest '
        "mistakes first: an answer that is hardly likelier behind its own prompt than behind that of another row (a score near 0 "
        "or above) probably belongs elsewhere. The first are shown token by token below."
        f"</p><table>{head}<tbody>{lines}</tbody></table></div>"
    )


def _courses(found: dict[str, Any], bounds: tuple[float, float]) -> str:
    if found["passes"] < 2:
        return '<p class="hint">One pass over the data shows no course: no row was seen again after it was learned.</p>'
    parts = [
        ("learned", found["learned"], "var(--curve-3)"),
        ("forgotten", found["forgotten"], "var(--curve-2)"),
        ("never learned", found["never_learned"], "var(--bad)"),
    ]
    out = f'<div class="card">{pictures.stacked(parts, "Rows by the course of their loss")}</div>'
    for course in ("forgotten", "never learned"):
        rows = [row for row in found["rows"] if row["course"] == course]
        if rows:
            rows.sort(key=lambda row: -(row["losses"][-1] or 0.0))
            lines = "".join(
                f'<tr><th scope="row">{escape(row["row"])}</th>{_course(row["losses"], bounds)}</tr>'
                for row in rows[:MOST_ROWS]
            )
            more = f'<p class="hint">and {len(rows) - MOST_ROWS:,} more</p>' if len(rows) > MOST_ROWS else ""
            out += (
                f'<details><summary>{counted(len(rows), "row")} {course}</summary><div class="in wide"><table>'
                f"{_head('Row', 'by pass', '')}<tbody>{lines}</tbody></table>{more}</div></details>"
            )
    return out


def _head(first: str, *others: str) -> str:
    cells = "".join(f'<th scope="col" class="n">{escape(name)}</th>' if name else "<td></td>" for name in others)
    return f'<thead><tr><th scope="col">{escape(first)}</th>{cells}</tr></thead>'


def _course(losses: Sequence[float | None], bounds: tuple[float, float]) -> str:
    words = " ".join("?" if loss is None else f"{loss:.2f}" for loss in losses)
    return f'<td class="n">{words}</td><td>{pictures.spark(losses, *bounds)}</td>'
