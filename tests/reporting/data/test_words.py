"""The report on the data says the same in the terminal, on the page and as values."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tests.helpers.looked_at import PLAIN, looked, prepare_folder, write_rows

from luthier.inspecting.data.duplicates import CONFLICTS, DUPLICATES, OVERLAP, SAYS
from luthier.inspecting.data.report import DataReport
from luthier.inspecting.data.shown_rows import Wanted
from luthier.reporting.data.page import render_page
from luthier.reporting.data.text import print_report
from luthier.system.words import counted, noun

LONG = "A luthier builds and tunes string instruments: the violin, the guitar and the lute, and mends old ones too."
ROWS = [
    *PLAIN,
    *([{"instruction": "What is a luthier?", "output": LONG}] * 3),
    {"instruction": "what is a  Luthier", "output": LONG.upper()},
    {"instruction": "What is a luthier?", "output": "A maker."},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prepare_folder(ROWS)
    write_rows([ROWS[4], {"instruction": "Say violin", "output": "No."}], "held.jsonl")


def in_text(report: DataReport) -> str:
    out = Console(width=200, record=True, file=io.StringIO(), highlight=False, soft_wrap=True)
    print_report(report, out)
    return out.export_text()


def on_page(report: DataReport) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", render_page(report)))


def test_duplicates_have_one_name_and_one_count_everywhere() -> None:
    report = looked("eval=held.jsonl", wanted=Wanted(samples=0))
    text, page, found = in_text(report), on_page(report), report.as_values()["duplicates"]
    for words in (DUPLICATES, CONFLICTS, OVERLAP):
        assert words in text
        assert words in page
    assert [found[degree]["extra"] for degree in ("exact", "normalised")] == [2, 1]
    for degree in ("exact", "normalised", "near"):
        one = found[degree]
        assert one["says"] == SAYS[degree]
        assert re.search(rf"^ +{one['extra']} {degree} +{re.escape(SAYS[degree])}", text, re.M)
        assert re.search(rf"duplicates, {degree}\s+{re.escape(SAYS[degree])}\s+{one['extra']} ", page)
    assert {degree: one["rows"] for degree, one in found["overlap"].items()} == {
        "exact": 1, "normalised": 0, "near": 0, "prompt": 1, "near_prompt": 0,
    }  # fmt: skip
    for degree, one in found["overlap"].items():
        after = text.partition("overlap: ")[2]
        name = degree.replace("_", " ")
        assert re.search(rf"^ +{one['rows']} {name} +{re.escape(SAYS[degree])}", after, re.M)
        assert re.search(rf"overlap, {name}\s+{re.escape(SAYS[degree])}\s+{one['rows']} ", page)
    for other_words in ("folded", "more than once", "trained on too"):
        assert other_words not in text + page


def test_a_row_longer_than_a_forward_pass_is_no_full_bar() -> None:
    report = looked("max_tokens_per_micro_batch=40", "global_batch_size=4", wanted=Wanted(samples=0))
    text = in_text(report)
    beyond = [cost for step in report.batches.drawn for batch in step if (cost := sum(batch)) > 40]
    assert beyond
    for cost in beyond:
        assert re.search(rf"\|█+> {cost} tokens, 1 sample, {cost / 40:.1f} times the bound", text)
    assert text.count(" times the bound") == len(beyond)
    page = render_page(report)
    assert "more than the bound" in page
    assert report.batches.histogram[-1] >= len(beyond)
    assert f"90 % of the most tokens and more: {report.batches.histogram[-1]} forward passes" in page
    assert "90 to 99" not in page
    assert "0 to 99" not in page
    fits = looked("max_tokens_per_micro_batch=4000", wanted=Wanted(samples=0))
    assert "times the bound" not in in_text(fits)
    assert "more than the bound" not in render_page(fits)


def test_rows_without_tokens_are_said_on_the_page_as_in_the_text() -> None:
    write_rows([*PLAIN, {"instruction": "x", "output": ""}])
    report = looked("on_bad_row=drop", wanted=Wanted(samples=0))
    for said in (in_text(report), on_page(report)):
        assert "1 row could not be used: its tokens are not known" in said


def test_one_and_many() -> None:
    assert [counted(count, "row") for count in (0, 1, 2, 2_000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert counted(2, "forward pass", "forward passes") == "2 forward passes"
    assert noun(1.5, "epoch") == "epochs"
