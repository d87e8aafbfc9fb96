"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from luthier.system.console import Screen as Terminal
from luthier.system.streams import OUT, silence

SAMPLE_CHARS = 200
TERM = "loss_"
"""How the name of a term's loss begins in the line of a step."""
BUSY_PRESSURE = 0.2
"""Of a step's time: on a quiet machine it is 0.01, beside one busy process on two cores 0.36."""


def duration(seconds: float | None) -> str:
    """`8s`, `3m10s`, `2h05m`, `4d06h`; `?` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    for unit, smaller, size, part in (("m", "s", 60, 1), ("h", "m", 3600, 60), ("d", "h", 86400, 3600)):
        if whole < size * (60 if unit == "m" else 24) or unit == "d":
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    raise AssertionError("unreachable")


def memory(size_bytes: float | None) -> str:
    """`312 MB`, `1.8 GB` (powers of ten)."""
    if size_bytes is None:
        return "?"
    if size_bytes == 0:
        return "0"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 999.5e6 else f"{size_bytes / 1e6:.0f} MB"


def figure(value: object, pattern: str) -> str:
    """`value` in the pattern of `format`, or `?` where there is none."""
    return format(value, pattern) if isinstance(value, (int, float)) else "?"


def speed(timing: Mapping[str, Any]) -> str:
    """`312 tok/s`, and why it may be slow: `62 tok/s (busy machine: 36% of the time a task waits for a core)`."""
    shown = f"{figure(timing.get('tokens_per_s'), ',.0f')} tok/s"
    pressure = timing.get("cpu_pressure") or 0.0
    busy = f" (busy machine: {pressure:.0%} of the time a task waits for a core)"
    return shown + busy if pressure >= BUSY_PRESSURE else shown


def terms(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a loss that is a sum, each term before its weight: `sft 1.200`, `z_loss 3.400`."""
    found = (key for key in line if key.startswith(TERM))
    return tuple(f"{key.removeprefix(TERM)} {figure(line[key], '.3f')}" for key in found)


def pairs(line: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Where answers are compared: `62.5 % of pairs right`, `margin 0.12`, the difference of their rewards; where each is judged by
    itself: `62.5 % of answers right`.
    """
    right, margin = line.get(f"{prefix}accuracy"), line.get(f"{prefix}margin")
    what = "answers" if f"{prefix}share_good" in line else "pairs"
    shown = () if right is None else (f"{figure(right * 100, '.1f')} % of {what} right",)
    return shown if margin is None else (*shown, f"margin {figure(margin, '.3g')}")


def taught(line: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """Where a teacher is learned from: `41.2 % as the teacher`, of the positions at which both find the same token likeliest."""
    agreed = line.get(f"{prefix}agreement")
    return () if agreed is None else (f"{figure(agreed * 100, '.1f')} % as the teacher",)


class TimeLeft:
    """How long the rest of the run takes, by the clock.

    So evaluations and checkpoints count, and the first step of a start, which compiles and warms up, does not.
    """

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total_steps = total_steps
        self._clock = clock
        self._origin: tuple[int, float] | None = None
        self.seconds: float | None = None

    def step(self, step: int, step_s: float | None) -> None:
        now, remaining = self._clock(), self._total_steps - step
        if self._origin is None:
            self._origin = (step, now)
        steps, elapsed = step - self._origin[0], now - self._origin[1]
        per_step = elapsed / steps if steps > 0 else step_s
        self.seconds = None if per_step is None else per_step * remaining


def plain_step(line: Mapping[str, Any], timing: Mapping[str, Any], total_steps: int, left_s: float | None) -> str:
    """`step  12/120  loss 1.234  lr 2.0e-04  grad 0.53  312 tok/s  1.8 GB  left 3m10s`, one below the other."""
    width = len(str(total_steps))
    parts = (
        f"step {line['step']:>{width}}/{total_steps}",
        f"loss {figure(line.get('loss'), '.3f')}",
        *terms(line),
        *pairs(line),
        *taught(line),
        f"lr {figure(line.get('learning_rate'), '.1e')}",
        f"grad {figure(line.get('grad_norm'), '.2f')}",
        speed(timing),
        memory(timing.get("memory_bytes")),
        f"left {duration(left_s)}",
    )
    return "  ".join(parts)


def plain_evaluation(line: Mapping[str, Any]) -> str:
    """`eval after 12 steps: loss 1.234, perplexity 3.43, 61.2 % of tokens right (4,096 tokens)`."""
    when = "before training" if line["step"] == 0 else f"after {line['step']} step{'s' if line['step'] != 1 else ''}"
    parts = [f"loss {figure(line.get('eval_loss'), '.3f')}"]
    if line.get("eval_perplexity") is not None:
        parts.append(f"perplexity {figure(line['eval_perplexity'], '.4g')}")
    if line.get("eval_token_accuracy") is not None:
        parts.append(f"{figure(line['eval_token_accuracy'] * 100, '.1f')} % of tokens right")
    parts += (*pairs(line, "eval_"), *taught(line, "eval_"))
    tokens = f" ({line['eval_tokens']:,} tokens)" if line.get("eval_tokens") is not None else ""
    return f"eval {when}: {', '.join(parts)}{tokens}"


def _one_line(text: str) -> str:
    """Text of a model or a user, safe on a terminal: one line, no control characters, not too long."""
    shown = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return shown if len(shown) <= SAMPLE_CHARS else shown[: SAMPLE_CHARS - 1] + "…"


class _Live(Progress):
    """A bar, and below it the figures of the latest step, wrapped where the terminal is narrow."""

    figures: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text("\n".join(_wrapped(self.figures, self.console.width)))


def _wrapped(figures: Iterable[str], width: int) -> list[str]:
    """The figures in lines of at most `width` characters, none of them broken."""
    lines = [""]
    for one in figures:
        joined = f"{lines[-1]}  {one}" if lines[-1] else one
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(one)
    return lines


class Screen:
    """Shows the run on standard output: a live display where that is a terminal, one line a shown step elsewhere.

    Args:
        total_steps: optimizer steps of the whole run.
        start_step: steps done before.
        quiet: shows nothing.
        console: where to; standard output by default.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Terminal(quiet=quiet, highlight=False)
        self._total_steps = total_steps
        self._left = TimeLeft(total_steps, clock)
        self._eval = ""
        self._live: _Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not quiet:
            self._live = _Live(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f} %  left {task.fields[left]}"),
                console=self._console,
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._live.add_task("train", total=total_steps, completed=start_step, left="?")
            self._live.start()

    def step(self, line: Mapping[str, Any], timing: Mapping[str, Any], shown: bool = True) -> None:
        """A step; only the time left is updated where it is not `shown`."""
        self._left.step(line["step"], timing.get("step_s"))
        if not shown:
            return
        if self._live is None:
            self._print(plain_step(line, timing, self._total_steps, self._left.seconds))
        else:
            self._live.figures = self._figures(line, timing)
            self._live.update(self._task, completed=line["step"], left=duration(self._left.seconds))

    def _figures(self, line: Mapping[str, Any], timing: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            f"epoch {figure(line.get('epoch'), '.2f')}",
            f"loss {figure(line.get('loss'), '.3f')}",
            *terms(line),
            *pairs(line),
            *taught(line),
            *([self._eval] if self._eval else []),
            f"lr {figure(line.get('learning_rate'), '.1e')}",
            f"grad {figure(line.get('grad_norm'), '.2f')}",
            speed(timing),
            f"{figure(timing.get('step_s'), '.2f')} s/step",
            memory(timing.get("memory_bytes")),
        )

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """An evaluation on held-out data."""
        self._eval = f"eval {figure(line.get('eval_loss'), '.3f')}"
        self._print(plain_evaluation(line))

    def sample(self, step: int, prompt: str, answer: str) -> None:
        """What the model answers at this step, on one line."""
        self._print(f"sample after {step} steps: {_one_line(prompt)!s} -> {_one_line(answer)!s}")

    def note(self, text: str) -> None:
        """A line of text."""
        self._print(text)

    def close(self) -> None:
        """Leaves the last state of the display on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        # Not markup: text may hold brackets. Not wrapped: one line a step in a file, whatever width rich assumes.
        try:
            self._console.print(Text(text), soft_wrap=True)
        except (OSError, ValueError):  # the terminal is gone, the disk behind it is full: the run's files have it all
            silence(OUT)
