"""The last words of a run: what came of it, where it lies, what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.reporting.run.next_lines import next_lines
from luthier.runs.figures import RunFigures, read_figures
from luthier.runs.run_folder import REPORT
from luthier.runs.screen import duration, memory
from luthier.system.words import counted


def end_summary(folder: Path | str) -> str:
    """A few lines of plain text, made from the run's files; what is not recorded is left out."""
    run = read_figures(folder)
    result = next((f"{name}/" for name in ("adapter", "model") if (run.folder / name).is_dir()), "")
    rows = [
        ("loss", _arrow([line.get("loss") for line in run.steps], "first and last step")),
        ("held-out", _held_out(run)),
        ("trained", _trained(run)),
        ("result", str(run.folder / result) if result else ""),
        ("report", str(run.folder / REPORT) if (run.folder / REPORT).is_file() else ""),
    ]
    lines = [f"  {name:<9}{value}" for name, value in rows if value]
    return "\n".join(["done", *lines, "next", *(f"  {line}" for line in next_lines(run))])


def _arrow(values: list[Any], what: str) -> str:
    known = [value for value in values if isinstance(value, (int, float))]
    return f"{known[0]:.3f} -> {known[-1]:.3f} ({what})" if known else ""


def _held_out(run: RunFigures) -> str:
    before, after = run.first_evaluation, run.last_evaluation
    if after is None or after.get("eval_loss") is None:
        return ""
    parts = []
    for key, name, pattern, scale in (
        ("eval_loss", "loss", ".3f", 1),
        ("eval_perplexity", "perplexity", ".4g", 1),
        ("eval_token_accuracy", "% of tokens right", ".1f", 100),
        ("eval_accuracy", f"% of {'answers' if 'eval_share_good' in after else 'pairs'} right", ".1f", 100),
        ("eval_margin", "margin", ".3g", 1),
        ("eval_agreement", "% as the teacher", ".1f", 100),
    ):
        known = [line[key] * scale for line in (before, after) if line is not None and line.get(key) is not None]
        shown = " -> ".join(format(value, pattern) for value in known)
        if shown:
            parts.append(f"{shown} {name}" if name.startswith("%") else f"{name} {shown}")
    return ", ".join(parts)


def _trained(run: RunFigures) -> str:
    if not run.steps:
        return ""
    parts = [f"on {counted(run.trained_tokens, 'token')} in {counted(len(run.steps), 'step')}"]
    if run.seconds:
        parts.append(duration(run.seconds))
    if run.tokens_per_s:
        parts.append(f"{run.tokens_per_s:,.0f} tokens/s with their context")
    if run.peak_memory_bytes is not None:
        parts.append(f"peak memory {memory(run.peak_memory_bytes)}")
    return ", ".join(parts)
