"""What a person sees of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from luthier.runs.screen import Screen, TimeLeft, duration, memory, plain_evaluation, plain_step

LINE = {"step": 12, "epoch": 0.3, "loss": 1.2341, "learning_rate": 2e-4, "grad_norm": 0.534, "token_accuracy": 0.5}
TIMING = {"step_s": 1.76, "tokens_per_s": 312.4, "memory_bytes": 1.82e9}


def screen(*, terminal: bool, width: int = 100) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None)
    return Screen(total_steps=20, console=console), out


def test_a_plain_line() -> None:
    expected = "step  12/120  loss 1.234  lr 2.0e-04  grad 0.53  312 tok/s  1.8 GB  left 3m10s"
    assert plain_step(LINE, TIMING, 120, 190) == expected


def test_plain_lines_stand_in_columns_and_say_what_is_not_known() -> None:
    assert plain_step({"step": 7, "loss": None}, {}, 5000, None) == (
        "step    7/5000  loss ?  lr ?  grad ?  ? tok/s  ?  left ?"
    )


def test_an_evaluation_in_words() -> None:
    line = {"step": 0, "eval_loss": 2.0, "eval_perplexity": 7.389, "eval_token_accuracy": 0.612, "eval_tokens": 4096}
    assert plain_evaluation(line) == (
        "eval before training: loss 2.000, perplexity 7.389, 61.2 % of tokens right (4,096 tokens)"
    )
    assert plain_evaluation({"step": 1, "eval_loss": 2.0}) == "eval after 1 step: loss 2.000"


def test_answers_that_are_compared_are_counted() -> None:
    compared = {"step": 1, "eval_loss": 0.6, "eval_accuracy": 0.625, "eval_margin": 0.1234}
    assert plain_evaluation(compared) == "eval after 1 step: loss 0.600, 62.5 % of pairs right, margin 0.123"
    line = plain_step({**LINE, "accuracy": 1.0, "margin": -0.5}, TIMING, 120, 190)
    assert "loss 1.234  100.0 % of pairs right  margin -0.5  lr 2.0e-04" in line
    beside = {"step": 1, "eval_loss": 0.6, "eval_agreement": 0.4125}
    assert plain_evaluation(beside) == "eval after 1 step: loss 0.600, 41.2 % as the teacher"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3599, "59m59s"), (3600, "1h00m"), (86_399, "23h59m"),
     (86_400, "1d00h"), (5e6, "57d20h"), (None, "?"), (float("inf"), "?")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (5e6, "5 MB"), (999.4e6, "999 MB"), (999.6e6, "1.0 GB"), (1.82e9, "1.8 GB"), (None, "?")],
)
def test_memory(size: float | None, text: str) -> None:
    assert memory(size) == text


def test_the_time_left_counts_evaluations_and_not_the_warm_up() -> None:
    now = 100.0
    left = TimeLeft(10, clock=lambda: now)
    left.step(1, 50.0)
    assert left.seconds == 450.0, "nothing else is known yet"
    now += 2.0  # a step
    left.step(2, 2.0)
    assert left.seconds == 16.0
    now += 4.0  # a step and an evaluation
    left.step(3, 2.0)
    assert left.seconds == 21.0


def test_without_a_terminal_there_are_only_plain_lines() -> None:
    shown, out = screen(terminal=False, width=20)
    shown.step(LINE, TIMING)
    shown.evaluation({"step": 12, "eval_loss": 1.0})
    shown.note("saved [bold]step-12[/bold]")
    shown.sample(12, "a\nb", "\x1b[31mred\x07 \u202etext")
    shown.close()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("step 12/20  loss 1.234  lr 2.0e-04"), "not wrapped at the width that rich assumes"
    assert lines[1:3] == ["eval after 12 steps: loss 1.000", "saved [bold]step-12[/bold]"]
    assert lines[3] == "sample after 12 steps: a b ->  [31mred   text", "what a model says cannot steer the terminal"
    assert len(lines) == 4
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [40, 120])
def test_on_a_terminal_a_bar_with_all_figures(width: int) -> None:
    shown, out = screen(terminal=True, width=width)
    shown.evaluation({"step": 0, "eval_loss": 2.5})
    shown.step(LINE, TIMING)
    shown.close()
    text = out.getvalue()
    for part in ("step 12/20", "60 %", "left 14s", "epoch 0.30", "loss 1.234", "eval 2.500", "lr 2.0e-04", "312 tok/s",
                 "1.76 s/step", "1.8 GB"):  # fmt: skip
        assert part in text
