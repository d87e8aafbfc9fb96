"""report.html, its curves, and the last words of a run."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.properties import examples

from luthier import config
from luthier.reporting.curves import HEIGHT, MAX_DRAWN, WIDTH, Series, short_number, smoothed, svg_curve, ticks
from luthier.reporting.run.page import write_report
from luthier.reporting.run.summary import end_summary
from luthier.runs.recorder import Recorder

NASTY = "<script>alert('1')</script> & \"quoted\" <b>bold</b> 我 \x1b[31m"
VOID = {"meta", "br"}
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


class Page(HTMLParser):
    """Follows the tags of a page: all closed in order, and no attribute that fetches or runs anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in LOADING, (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert name != "href" or (value or "").startswith("#"), value
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def a_run(folder: Path, steps: int = 30) -> Path:
    """A run's folder with every file, and hostile text wherever a user's or a model's text goes."""
    tree = {
        "model": "org/<name>",
        "data": {"train": [NASTY], "eval": 0.1},
        "output_dir": "runs/mine",
        "tuning": {"kind": "lora", "r": 4},
        "training": {"sample_prompts": [NASTY]},
    }
    chosen = config.from_dict(tree)
    with Recorder(folder, chosen, total_steps=steps, quiet=True) as recorder:
        recorder.evaluation({"step": 0, "eval_loss": 2.0, "eval_perplexity": 7.389, "eval_token_accuracy": 0.25})
        recorder.sample(0, NASTY, NASTY)
        for step in range(1, steps + 1):
            line = {
                "step": step,
                "epoch": step / steps,
                "loss": 2 - step / steps,
                "learning_rate": 1e-4,
                "grad_norm": 0.5,
                "token_accuracy": 0.5,
                "trained_tokens": 100 * step,
            }
            recorder.step(line, {"step_s": 2.0, "tokens_per_s": 50.0, "memory_bytes": 1e9 + step})
        recorder.evaluation({"step": steps, "eval_loss": 1.0, "eval_perplexity": 2.718, "eval_token_accuracy": 0.75})
        recorder.sample(steps, NASTY, "now")
    (folder / "config.yaml").write_text(chosen.resolved_yaml(), encoding="utf-8")
    answers = [
        {"prompt": NASTY, "reference": NASTY, "before": NASTY, "after": "better"},
        {"prompt": "x", "after": None},
    ]
    ledger = {"rows_in": 5000, "dropped": {NASTY: 3}, "files": [{"path": NASTY, "rows": 1}, {"rows": 2}], "none": []}
    manifest = {
        "started": NASTY,
        "hardware": {"memory_bytes": 8_000_000_000, "gpu": None},
        "decisions": [1, "flat", True],
    }
    for name, value in (("answers", answers), ("ledger", ledger), ("manifest", manifest)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_the_page_is_whole_loads_nothing_and_shows_all_text_as_text(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path / "mine <i>"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "mine <i>" / "report.html"
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "b onload", "i"})
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|url\(|@import|//\w", text), "nothing from elsewhere"
    assert page.text.count("<script>alert('1')</script>") >= 9
    for shown in (
        "2.000",
        "1.000",
        "50 % lower",
        "3,000",
        "1m00s",
        "50 tok/s",
        "1.0 GB",
        "8.0 GB",
        "5,000",
        "lora, rank 4",
        "org/<name>",
        "learning_rate: 0.0002",
    ):
        assert shown in page.text, shown
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    "absent",
    ["metrics.jsonl", "timings.jsonl", "samples.jsonl", "config.yaml", "answers.json", "ledger.json", "manifest.json"],
)
@pytest.mark.parametrize("content", [None, b"\xff{ torn"])
def test_a_missing_or_torn_file_is_named(tmp_path: Path, absent: str, content: bytes | None) -> None:
    folder = a_run(tmp_path / "mine", steps=3)
    (folder / absent).unlink()
    if content is not None:
        (folder / absent).write_bytes(content)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    if absent not in ("timings.jsonl", "config.yaml") or (absent == "config.yaml" and content is None):
        assert f"There is nothing in {absent}" in page.text
    assert page.text.count("There is nothing in") <= 1
    assert "next" in end_summary(folder)


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("There is nothing in") == 6
    assert "none yet" in page.text


def test_without_held_out_data_the_training_loss_is_the_result(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 3.0}\n')
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Training loss, first and last step" in page.text
    assert "50 % higher" in page.text


def test_a_run_on_pairs_shows_what_became_of_both_answers(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    pair = {"accuracy": 0.75, "margin": 0.2, "logps_chosen": -30.0, "logps_rejected": -40.0}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, **(pair if "loss" in line else {"eval_accuracy": 0.5, "eval_margin": 0.1})} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    for title in (
        "Pairs whose better answer is preferred",
        "Margin between the rewards",
        "Log-probability of both answers",
    ):
        assert title in text
    assert "Tokens predicted right" not in text
    assert "50.0 -> 50.0 % of pairs right, margin 0.1 -> 0.1" in end_summary(folder)


def test_the_same_answer_is_told_once(tmp_path: Path) -> None:
    lines = [{"step": step, "prompt": "p", "answer": "other" if step == 30 else "same"} for step in (10, 20, 30, 40)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "10 to 20same30other40same" in text


@examples(40)
@given(values=st.lists(st.tuples(st.integers(0, 10**6), NUMBERS), max_size=40), name=st.text(), zero=st.booleans())
def test_curves_stay_in_their_picture(values: list[tuple[int, float]], name: str, zero: bool) -> None:
    points = sorted((float(x), y) for x, y in dict(values).items())
    figure = svg_curve([Series(name, points), Series("empty", [])], name, from_zero=zero)
    Page(figure)
    for path in re.findall(r'points="([^"]*)"', figure):
        for place in path.split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_many_steps_make_no_large_picture_and_keep_their_spikes() -> None:
    points = [(float(step), 100.0 if step == 12_345 else step % 7 / 7) for step in range(50_000)]
    figure = svg_curve([Series("loss", points)], "Loss")
    drawn = re.search(r'points="([^"]*)"', figure)
    assert drawn
    assert len(drawn[1].split()) <= MAX_DRAWN
    assert min(float(place.split(",")[1]) for place in drawn[1].split()) < 30, "the spike is at the top"
    assert len(figure) < 100_000


def test_a_curve_names_its_values() -> None:
    figure = Page(
        svg_curve([Series("train", [(1, 2.5), (2, 1.25)]), Series("held-out", [(2, 1.5)], "dots", 1)], "Loss")
    )
    assert "step 1: train 2.5" in figure.text
    assert "step 2: train 1.25, held-out 1.5" in figure.text
    assert "Nothing was recorded" in svg_curve([Series("train", [(1, float("nan"))])], "Loss")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span, 5)
    assert len(found) <= 11
    slack = 1e-6 * span + 4 * math.ulp(abs(low) + span)
    assert all(low - slack <= value <= low + span + slack for value in found)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_a_smoothed_curve_starts_with_its_first_value_and_stays_between_all(values: list[float]) -> None:
    mean = [y for _, y in smoothed([(float(x), y) for x, y in enumerate(values)])]
    assert mean[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-6 <= y <= max(values) + 1e-6 for y in mean)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.125, "0.125"),
        (1200.0, "1,200"),
        (12_345.0, "12.3k"),
        (2e-4, "2e-4"),
        (1.5e-5, "1.5e-5"),
        (3e6, "3M"),
        (-0.5, "-0.5"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_the_last_words_say_what_came_out_and_what_to_type(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "my run", steps=4)
    (folder / "adapter").mkdir()
    write_report(folder)
    lines = end_summary(folder).splitlines()
    told: dict[str, Any] = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert told["loss"] == "1.750 -> 1.000 (first and last step)"
    assert told["held-out"] == "loss 2.000 -> 1.000, perplexity 7.389 -> 2.718, 25.0 -> 75.0 % of tokens right"
    assert told["trained"] == "on 400 tokens in 4 steps, 8s, 50 tokens/s with their context, peak memory 1.0 GB"
    assert told["result"] == str(folder / "adapter")
    assert told["report"] == str(folder / "report.html")
    assert f"  luthier chat '{folder}'" in lines, "ready to paste, spaces and all"
