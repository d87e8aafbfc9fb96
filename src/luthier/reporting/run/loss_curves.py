"""The curves of a run: what was recorded at each step, as pictures for the report and for notebooks."""

from __future__ import annotations

from luthier.reporting.curves import Point, Series, smoothed, svg_curve
from luthier.runs.figures import RunFigures, points
from luthier.runs.screen import memory


def with_mean(name: str, found: list[Point], colour: int = 0) -> list[Series]:
    """A curve, and where it has enough points to hide its course, its smoothed line above it."""
    if len(found) < 20:
        return [Series(name, found, "line", colour)]
    return [Series(name, found, "faint", colour), Series("smoothed", smoothed(found), "line", colour)]


def loss_curve(run: RunFigures) -> str:
    """The picture that says most: training loss, smoothed, and held-out loss."""
    return svg_curve(
        [
            *with_mean("train", points(run.steps, "loss")),
            Series("held-out", points(run.evaluations, "eval_loss"), "dots", 1),
        ],
        "Loss",
    )


def all_curves(run: RunFigures) -> list[str]:
    """Every curve of a run as HTML figures; the ones without data only where something should have been recorded."""
    curves = [loss_curve(run)]
    if run.steps:
        curves += _answers_compared(run) or [
            svg_curve(_both(run, "token_accuracy"), "Tokens predicted right", format_y=_percent),
            *_beside_a_teacher(run),
        ]
        curves += [
            svg_curve([Series("learning rate", points(run.steps, "learning_rate"))], "Learning rate", from_zero=True),
            svg_curve(
                with_mean("each step", points(run.steps, "grad_norm")), "Gradient norm, before clipping", from_zero=True
            ),
        ]
    if run.timings:
        curves += [
            svg_curve(with_mean("each step", points(run.timings, "tokens_per_s")), "Tokens per second", from_zero=True),
            svg_curve(
                [Series("memory", points(run.timings, "memory_bytes"))], "Memory", format_y=memory, from_zero=True
            ),
        ]
    return curves


def _answers_compared(run: RunFigures) -> list[str]:
    """Of a run on pairs or judged answers: how often the better ones are preferred and by how much, and what became of both."""
    if not any("margin" in line for line in run.steps):
        return []
    judged = any("share_good" in line for line in run.steps)
    kinds = ("good", "bad") if judged else ("chosen", "rejected")
    scored = not any(f"logps_{kinds[0]}" in line for line in run.steps)  # a model of scores has no log-probabilities
    key, what = ("reward_{}", "Scores of {}") if scored else ("logps_{}", "Log-probability of {}; both may fall")
    likely = [Series(name, points(run.steps, key.format(name)), "line", colour) for colour, name in enumerate(kinds)]
    right = "Answers on the right side of z" if judged else "Pairs whose better answer is preferred"
    both = "good and bad answers" if judged else "both answers"
    return [
        svg_curve(_both(run, "accuracy"), right, format_y=_percent),
        svg_curve(_both(run, "margin"), f"Margin between the rewards of {both}"),
        svg_curve(likely, what.format(both)),
    ]


def _beside_a_teacher(run: RunFigures) -> list[str]:
    """Of a run that learns from a teacher: where both find the same token likeliest, and how likely each finds what is written."""
    if not any("agreement" in line for line in run.steps):
        return []
    found = (
        {"model": "eval_nll", "teacher": "eval_teacher_nll"}
        if run.evaluations
        else {"model": "nll", "teacher": "teacher_nll"}
    )
    lines = run.evaluations or run.steps
    likely = [Series(name, points(lines, key), "line", colour) for colour, (name, key) in enumerate(found.items())]
    return [
        svg_curve(_both(run, "agreement"), "Likeliest token as the teacher's", format_y=_percent),
        svg_curve(likely, "Negative log-likelihood of what is written, by model and teacher"),
    ]


def _both(run: RunFigures, key: str) -> list[Series]:
    """A figure of the steps, and of the held-out rows."""
    held_out = Series("held-out", points(run.evaluations, f"eval_{key}"), "dots", 1)
    return [*with_mean("train", points(run.steps, key)), held_out]


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"
