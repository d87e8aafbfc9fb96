"""What `luthier data` says of the data: in words, as values, and which rows it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.data.chat import check
from luthier.data.chat.check import made_tokenizer
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.steps.order import Steps
from luthier.errors import UserError
from luthier.inspecting.data.shown_rows import Wanted
from luthier.inspecting.data.token_view import INSTEAD, token_view, tokens_of
from luthier.reporting.data.text import print_report
from luthier.types import NO_TARGET, Conversation, Message
from tests.data.dataset.test_prepare import run
from tests.helpers import tokenizers
from tests.helpers.looked_at import PLAIN, loaded, looked, prepare_folder, write_rows
from tests.helpers.split_rows import REWRITES, write_conversations

ROOT = Path(__file__).parents[3]
HUANHUAN = ROOT.parent / "shared" / "data" / "huanhuan.json"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prepare_folder(PLAIN)
    return tmp_path


def documented() -> dict[str, set[str]]:
    """Of docs/data.md: top-level key -> the names in its line."""
    part = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("## As JSON")[2].partition("\n## ")[0]
    return {key: set(re.findall(r"`(\w+)`", line)) for key, line in re.findall(r"^\| `(\w+)` \| (.*) \|$", part, re.M)}


def test_the_documented_keys_are_those_printed(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([*PLAIN, {"instruction": "x", "output": ""}])
    assert main(["data", "mine.yaml", "on_bad_row=drop", "eval=0.3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    said = documented()
    assert printed.keys() == said.keys()
    assert printed["format"] == 1
    for key in ("tokens", "batches", "languages"):
        assert printed[key].keys() == said[key], key
    for values, key in ((printed["dropped"], "dropped"), (printed["rows"], "rows")):
        assert values
        assert all(one.keys() == said[key] for one in values), key
    for law in printed["laws"].values():
        assert law.keys() == said["laws"]
        assert re.fullmatch(r"[A-Z].{15,}\.", law["says"])
    assert printed["lengths"].keys() == {"row", "answer", "limit"}
    assert printed["lengths"]["row"].keys() | {"row", "answer", "limit"} == said["lengths"]
    degrees = {"exact", "normalised", "near", "conflicts", "near_conflicts"}
    assert printed["duplicates"].keys() == said["duplicates"] - {"says", "groups", "rows", "extra", "listed"}
    each = {"says", "groups", "rows", "extra", "listed"}
    assert all(printed["duplicates"][degree].keys() == each for degree in degrees)
    assert all(one.keys() == {"says", "rows", "listed"} for one in printed["duplicates"]["overlap"].values())
    assert {key for row in printed["rows"] for token in row["tokens"] for key in token} == {
        "id", "text", "trained", "kind", "instead", "shares", "look",
    }  # fmt: skip
    dropped = printed["dropped"]
    assert [row["where"] for row in dropped] == ["train.jsonl:5  output"]
    assert "empty" in dropped[0]["reason"]


def test_every_dropped_row_is_said_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([*PLAIN, *({"instruction": "x", "output": ""} for _ in range(30))])
    assert main(["data", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "30 of 34 rows cannot be used (88.2 %)" in said
    assert "and 10 more; luthier data with on_bad_row=drop on_long_row=drop and --json lists all" in said
    assert "fix: mend the rows, or on_bad_row=drop (they go to rejected.jsonl)" in said
    assert main(["data", "mine.yaml", "on_bad_row=drop", "on_long_row=drop"]) == 0
    said = capsys.readouterr().out
    assert said.count("dropped  train.jsonl:") == 10
    assert "and 20 more; --json has all" in said
    assert main(["data", "mine.yaml", "on_bad_row=drop", "on_long_row=drop", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["dropped"]) == 30
    write_rows([{"instruction": "x", "output": ""}] * 3)
    assert main(["data", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "3 of 3 rows cannot be used (100 %)" in said


STOPPED = {"instruction": "Say it", "output": "So.</s>"}
"""Its answer ends in a stop token of another model."""
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + tokenizers.CHATML


def test_the_whole_report_comes_before_the_error_that_a_run_would_end_with(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([*PLAIN, STOPPED, {"instruction": "x", "output": ""}, {"instruction": "y", "output": "word " * 200}])
    with pytest.raises(UserError) as caught:
        run(None, "max_length=100")
    for time in ("new", "kept"):
        assert main(["data", "mine.yaml", "max_length=100"]) == 2, time
        shown = capsys.readouterr()
        assert shown.err == f"{caught.value}\n"
        assert "7 in = 4 trained + 0 held out + 3 dropped" in shown.out
        assert "BROKEN  answer has no terminator: 1 row, dropped (train.jsonl:5)" in shown.out
        for name in ("train.jsonl:5  law", "train.jsonl:6  output", "train.jsonl:7:"):
            assert (shown.out + shown.err).count(name) == 1, name
    assert main(["data", "mine.yaml", "max_length=100", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["refused"] == str(caught.value)
    assert main(["data", "mine.yaml", "max_length=100", "on_bad_row=drop", "on_long_row=drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] is None


def test_a_row_is_counted_under_every_law_that_it_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.jinja").write_text(DROPS_SYSTEM)
    both = {**STOPPED, "system": "Be brief."}
    write_rows([*PLAIN, {**PLAIN[0], "system": "Be brief."}, both, STOPPED])
    assert main(["data", "mine.yaml", "chat_template=own.jinja", "--json"]) == 2
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    broken = {name: law["rows"] for name, law in report["laws"].items() if not law["holds"]}
    assert broken == {
        "every_message_is_shown": ["train.jsonl:5", "train.jsonl:6"],
        "answer_has_no_terminator": ["train.jsonl:6", "train.jsonl:7"],
    }
    assert [report["laws"][name]["broken"] for name in broken] == [2, 2]
    assert report["ledger"]["rows_dropped"] == 3
    assert "train.jsonl:6  law answer_has_no_terminator: found the answer ends in '</s>' (it breaks every_" in shown.err


def test_a_row_that_breaks_a_law_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([*PLAIN, STOPPED, {"instruction": "y", "output": "word " * 200}, {"instruction": "x", "output": ""}])
    given = ["data", "mine.yaml", "on_bad_row=drop", "on_long_row=drop", "max_length=100", "--row"]
    assert main([*given, "5", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["row"], row["purpose"]) == ("train.jsonl:5", "dropped")
    asked, why = row["why"]
    assert asked == "asked for"
    assert why.startswith("it was dropped: law answer_has_no_terminator: the answer ends in '</s>'")
    assert "".join(token["text"] for token in row["tokens"] if token["trained"]) == "So.</s><|im_end|>"
    assert [served["equal"] for served in row["served"]] == [True]
    assert main([*given, "6"]) == 0
    assert "-- train.jsonl:6, dropped: " in capsys.readouterr().out
    assert main([*given, "7"]) == 0
    assert "-- train.jsonl:7, dropped: no tokens (asked for; it was dropped: output: " in capsys.readouterr().out


def test_duplicates_of_each_degree() -> None:
    long = "A luthier builds and tunes string instruments: the violin, the guitar and the lute, and mends old ones too."
    write_rows(
        [
            {"instruction": "What is a luthier?", "output": long},
            {"instruction": "What is a luthier?", "output": long},
            {"instruction": "what is a  Luthier", "output": long.upper()},
            {"instruction": "What is a luthier?", "output": long.replace("old ones", "older ones")},
            {"instruction": "Is it an art?", "output": "Yes."},
            {"instruction": "Is it an art?", "output": "No."},
        ]
    )
    found = looked().duplicates
    assert found["exact"]["listed"] == [["train.jsonl:1", "train.jsonl:2"]]
    assert found["normalised"]["listed"] == [["train.jsonl:1", "train.jsonl:3"]]
    assert ["train.jsonl:1", "train.jsonl:4"] in found["near"]["listed"]
    assert ["train.jsonl:5", "train.jsonl:6"] in found["conflicts"]["listed"]
    assert [found[degree]["extra"] for degree in ("exact", "normalised")] == [1, 1]


def test_a_prompt_is_the_same_only_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [("Go on.", "No."), ("Go on!", "Yes."), ("Who?", "I."), ("Who?", "You."), ("who", "Nobody.")]
    write_rows([{"instruction": prompt, "output": answer} for prompt, answer in pairs])
    write_rows(
        [{"instruction": "Go on.", "output": "Because they asked me to."}, {"instruction": "WHO?", "output": "Me."}],
        "eval.jsonl",
    )
    report = looked("data.eval=eval.jsonl", wanted=Wanted(worst=True, samples=9))
    found = report.duplicates
    assert found["conflicts"]["listed"] == [["train.jsonl:3", "train.jsonl:4"]]
    assert found["near_conflicts"]["listed"] == [["train.jsonl:1", "train.jsonl:2"], ["train.jsonl:3", "train.jsonl:5"]]
    overlap = {degree: one["listed"] for degree, one in found["overlap"].items() if one["rows"]}
    assert overlap == {
        "prompt": [["eval.jsonl:1", "train.jsonl:1"]],
        "near_prompt": [["eval.jsonl:2", "train.jsonl:3"]],
    }
    assert report.ledger["held_out_prompts_also_trained"] == 1
    why = {row.row.rpartition(":")[2]: row.why for row in report.rows}
    assert why["1"] == ["nearly the same prompt has another answer in train.jsonl:2"]
    assert why["3"] == ["the same prompt has another answer in train.jsonl:4"]
    assert why["5"] == ["nearly the same prompt has another answer in train.jsonl:3"]
    print_report(report)
    said = capsys.readouterr().out
    assert "2 near conflicts  nearly the same prompt, but for case" in said
    assert "1 near prompt     nearly the same prompt, but for case" in said


@pytest.mark.skipif(not HUANHUAN.is_file(), reason=f"the demonstration data are not in {HUANHUAN.parent}")
def test_duplicates_of_real_rows_are_what_a_plain_look_finds() -> None:
    rows = json.loads(HUANHUAN.read_text(encoding="utf-8"))[:600]
    write_rows(rows)
    report = looked("on_long_row=drop", wanted=Wanted(samples=0))
    found, long = report.duplicates, set(report.ledger["dropped"]["longer than the limit"])
    by_row: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows, start=1):
        if f"train.jsonl:{number}" not in long:
            by_row.setdefault((row["instruction"], row["input"], row["output"]), []).append(number)
    groups = sorted([f"train.jsonl:{number}" for number in group] for group in by_row.values() if len(group) > 1)
    assert groups
    assert sorted(found["exact"]["listed"]) == groups
    for group in found["near"]["listed"]:
        texts = {tuple(rows[int(name.rpartition(":")[2]) - 1].values()) for name in group}
        assert len(texts) == len(group)  # near, but not the same


def test_worst_and_longest_say_why() -> None:
    rows = [
        *PLAIN,
        {"instruction": "Say violin", "output": "no"},
        {"instruction": "word " * 8, "output": "yes"},
        {"instruction": "a", "output": "word " * 90},
    ]
    write_rows(rows)
    given = ("max_length=80", "on_long_row=truncate")
    shown = {row.row: row for row in looked(*given, wanted=Wanted(worst=True, samples=9)).rows}
    why = {name.rpartition(":")[2]: row.why for name, row in shown.items()}
    assert why["7"] == ["it was cut: the end of its answer is lost"]
    assert why["1"] == ["the same prompt has another answer in train.jsonl:5"]
    assert why["5"] == ["the same prompt has another answer in train.jsonl:1"]
    share = 100 * shown["train.jsonl:6"].trained / len(shown["train.jsonl:6"].tokens)
    assert why["6"][0].endswith(f"of its tokens trained ({share:.1f} %)")
    assert next(iter(shown)) == "train.jsonl:7"
    longest = looked(*given, wanted=Wanted(longest=True, samples=2)).rows
    assert [row.row for row in longest] == ["train.jsonl:7", "train.jsonl:6"]
    assert len(longest[0].tokens) == 80


def test_one_row_is_found_by_line_and_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("3", "train.jsonl:3"):
        assert main(["data", "mine.yaml", "--row", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith("[trained]  context  {template}  <special>\n-- train.jsonl:3: ")
        assert out.count("\n-- ") == 1


def test_several_answers_show_what_is_served_once(capsys: pytest.CaptureFixture[str]) -> None:
    talk = [("user", "First question"), ("assistant", "one"), ("user", "Second"), ("assistant", "two")]
    write_rows([{"messages": [{"role": role, "content": content} for role, content in talk]}])
    assert main(["data", "mine.yaml"]) == 0
    out = capsys.readouterr().out.replace("·", "")
    assert "served for answer 1 of 2: " in out
    assert "served for answer 2 of 2: " in out
    assert out.count("First question") == 2  # in the row, and in what is served for the first answer


def sample_of(template: str, *messages: Message) -> Any:
    tokenizer = made_tokenizer(check.tokens_of(template))
    with Template.choose(tokenizer, template) as chosen:
        (sample,) = ChatRenderer(tokenizer, chosen).encode(Conversation(messages, "x:1"), 0)
    return tokenizer, sample


@pytest.mark.parametrize("template", ["baichuan2@chat", "guanaco", "chatml@plain"])
def test_a_target_that_is_not_the_next_id_is_told_apart(template: str) -> None:
    tokenizer, sample = sample_of(
        template,
        *(Message(role, text) for role, text in (("user", "Hi"), ("assistant", "Yes."), ("user", "So?"), ("assistant", "No."))),
    )  # fmt: skip
    tokens = tokens_of(tokenizer, sample)
    others = 0
    for token, index, target in zip(tokens, sample.input_ids, [NO_TARGET, *sample.targets[:-1]], strict=True):
        assert token.trained == (target == index)
        assert (token.instead is not None) == (target not in (NO_TARGET, index))
        if token.instead is not None:
            assert token.instead.id == target
            assert token.look != "trained"
            others += 1
    assert others == (0 if template == "chatml@plain" else 1)
    assert sum(token.trained for token in tokens) + others == sample.trained_tokens
    marks, coloured = token_view(tokens, colour=False).plain, token_view(tokens, colour=True).plain
    assert marks.count(f"[{INSTEAD}") == coloured.count(INSTEAD) == others


def test_what_the_row_brings_is_told_from_what_the_template_writes() -> None:
    tokenizer = tokenizers.chatml()
    renderer = ChatRenderer(tokenizer, Template.choose(tokenizer))
    messages = (
        Message("user", "user asks"),
        Message("assistant", "yes"),
        Message("user", "again"),
        Message("assistant", "no"),
    )
    tokens = tokens_of(
        tokenizer, renderer.encode_conversation(Conversation(messages, "x:1"), 0), ["user asks", "yes", "again", "no"]
    )
    texts = {
        look: "".join(token.text for token in tokens if token.look == look)
        for look in ("context", "template", "trained")
    }
    assert texts["context"].replace(" ", "") == "userasksagain"
    assert "user" in texts["template"]
    assert "again" not in texts["template"]
    some = tokens_of(
        tokenizer,
        renderer.encode_conversation(Conversation(messages, "x:1"), 0),
        ["user asks", "gone", "again", "no"],
    )
    assert [token.look for token in some] == [token.look for token in tokens]  # a text may be missing


def test_a_split_row_counts_once() -> None:
    """Steps, shares, languages and duplicates are of rows; a row that is shown is shown with all its samples."""
    answers = (3, 1, 2, 5, 3, 1, 4, 2, 3)
    write_conversations(Path("train.jsonl"), answers)
    Path("splits.jinja").write_text(REWRITES, encoding="utf-8")
    keys = ["chat_template=splits.jinja", "global_batch_size=2", "num_train_epochs=2"]
    report = looked(*keys, wanted=Wanted(samples=3))
    assert (report.batches.steps, report.batches.global_batch_size) == (10, 2)
    steps = report_steps(*keys)
    for step, drawn in enumerate(report.batches.drawn):
        assert sum(map(len, drawn)) == sum(answers[row] for row in steps.indices(step))
    assert sum(report.tokens["rows_by_trained_share"]) == report.languages["rows"] == len(answers)
    assert sum(bar["rows"] for bar in report.lengths["row"]["histogram"]) == sum(answers)
    assert [row.row for row in report.rows] == [
        f"train.jsonl:{row + 1}" for row in range(3) for _ in range(answers[row])
    ]
    longest = looked(*keys, wanted=Wanted(longest=True, samples=1)).rows
    assert {row.row for row in longest} == {"train.jsonl:4"}
    write_rows([json.loads(line) for line in Path("train.jsonl").read_text().splitlines()] * 2)
    twice = looked(*keys).duplicates
    assert (twice["exact"]["groups"], twice["exact"]["extra"]) == (len(answers), len(answers))


def report_steps(*overrides: str) -> Steps:
    training = loaded(*overrides).training
    assert training.num_train_epochs is not None
    return Steps(9, training.global_batch_size, 0, training.num_train_epochs)
