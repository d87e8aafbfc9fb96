"""`luthier data`: what a person and a program see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.inspecting.data.token_view import histogram, texts_of, token_view, tokens_of
from tests.helpers import tokenizers
from tests.helpers.tiny_models import tiny_llama

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
ROWS = [
    {"instruction": "Hi", "output": "Hello 👩‍👩‍👧"},
    {"instruction": "再见", "output": "再见！"},
    {"instruction": "x", "output": ""},
]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "model")
    tokenizers.save(tokenizers.chatml(), tmp_path / "model")
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("mine.yaml").write_text("model: ./model\ndata: train.jsonl\noutput_dir: runs/x\n")
    return ["data", "mine.yaml", "on_bad_row=drop"]


def test_brackets_where_there_is_no_colour(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(mine) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[Hello 👩‍👩‍👧<|im_end|>]" in re.sub(r"×\d", "", out).replace("][", "")
    assert "][" in out
    assert "[<|im_end|>]" in out
    assert "<|im_start|>{user↵" in out.replace("·", "")
    assert "served: " in out
    assert "pass    stop token is trained and stops" in out
    assert "dropped            1 unusable (train.jsonl:3)" in out
    assert "3 in = 2 trained" in out
    assert "█" in out
    assert not Path("runs").exists()


def test_one_row_and_json(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*mine, "--row", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (shown,) = found["rows"]
    assert shown["row"] == "train.jsonl:2"
    assert shown["why"] == ["asked for"]
    assert "".join(token["text"] for token in shown["tokens"] if token["trained"]) == "再见！<|im_end|>"
    assert {token["look"] for token in shown["tokens"]} == {"trained", "context", "template", "special"}
    (served,) = shown["served"]
    assert served["equal"]
    assert served["begins"] == served["tokens"]
    assert "".join(served["text"]) == "".join(token["text"] for token in shown["tokens"][: served["begins"]])
    assert found.keys() == {"format", "rows"}
    assert not list(Path("cache").glob("encoded/*"))
    assert main([*mine, "--row", "99"]) == 2
    said = capsys.readouterr().err
    assert "--row 99: no row has this name" in said
    assert "fix: --row train.jsonl:3" in said
    assert main(["data", "mine.yaml"]) == 2
    assert "1 of 3 rows cannot be used" in capsys.readouterr().err
    assert main([*mine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(law["holds"] and law["rows"] == [] for law in found["laws"].values())
    assert found["ledger"]["rows_in"] == 3
    assert sum(item["rows"] for item in found["lengths"]["row"]["histogram"]) == 2


def test_a_row_that_cannot_be_used_is_shown_with_what_is_wrong(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*mine, "--row", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("-- train.jsonl:3, dropped: no tokens (asked for; it was dropped: output: '' (empty)")
    assert shown.err == ""
    assert main(["data", "mine.yaml", "--row", "3"]) == 0
    assert "it cannot be used: output: '' (empty)" in capsys.readouterr().out
    Path("train.jsonl").write_text('{"instruction": "x", "output": "y"}\nbroken\n')
    assert main([*mine, "--row", "2"]) == 0
    assert "-- train.jsonl:2, dropped: no tokens (asked for; it was dropped: " in capsys.readouterr().out


def test_of_a_row_that_is_too_long_it_is_shown_where(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.jsonl").write_text(json.dumps({"instruction": "Hi", "output": "a b " * 30}) + "\n")
    assert main([*mine, "max_length=40", "--row", "1"]) == 0
    out = capsys.readouterr().out
    fits, _, more = out.partition("\n---- 40 tokens fit; ")
    assert " tokens, of which " in fits.splitlines()[1]
    assert "it cannot be used: " in fits
    assert "<|im_start|>" in fits
    assert "<|im_end|>" in more.partition("served:")[0]
    assert main([*mine, "max_length=40", "on_long_row=drop", "--row", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["purpose"], row["fits"]) == ("dropped", 40)
    assert len(row["tokens"]) > 40
    assert main([*mine, "max_length=40", "on_long_row=truncate", "--row", "1"]) == 0
    out = capsys.readouterr().out
    assert "it was cut: " in out
    assert "-- train.jsonl:1: 40 tokens" in out


def test_a_row_in_an_array_is_called_the_same_everywhere(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROWS[0], ROWS[2], ROWS[1], ROWS[0], {**ROWS[0], "output": "Bye"}, {**ROWS[0], "output": "b " * 80}]
    Path("rows.json").write_text(json.dumps(rows, indent=1))
    given = [*mine, "data.train=rows.json", "max_length=60", "on_long_row=drop", "--samples", "9"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, _, third, fourth, fifth, _ = names = [
        f"rows.json:{2 + 4 * place} (record {place + 1})" for place in range(6)
    ]
    assert [row["row"] for row in found["rows"]] == [first, third, fourth, fifth]
    assert found["duplicates"]["exact"]["listed"] == [[first, fourth]]
    assert set(found["duplicates"]["conflicts"]["listed"][0]) <= {first, fourth, fifth}
    assert [row["where"] for row in found["dropped"]] == [f"{names[1]}  output", names[5]]
    assert {name for group in found["ledger"]["dropped"].values() for name in group} == {names[1], names[5]}
    for name in names:
        for asked in (name, name.partition(" ")[0], "#" + name.rpartition(" ")[2].rstrip(")")):
            assert main([*given, "--json", "--row", asked]) == 0
            assert [row["row"] for row in json.loads(capsys.readouterr().out)["rows"]] == [name]
    assert main([*given[:-2], "on_long_row=truncate", "--json", "--samples", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["cut"] == [names[5]]


def test_a_row_that_is_not_there_is_told_before_torch(mine: list[str]) -> None:
    code = (
        "import sys; from luthier.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    given = [sys.executable, "-c", code, *mine, "--row", "99"]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr


def test_the_tokens_of_a_row_that_cannot_be_used_are_said_to_be_unknown(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*mine, "--samples", "0"]) == 0
    assert "1 row could not be used: its tokens are not known, and not in this sum" in capsys.readouterr().out
    assert main([*mine, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["rows_without_tokens"] == 1
    assert main([*mine, "on_long_row=drop", "max_length=30", "--json"]) == 2
    assert "no rows are left" in capsys.readouterr().err


@pytest.mark.parametrize("output_dir", ["", "output_dir: runs/x\n"])
def test_no_folder_need_be_named(mine: list[str], output_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(f"model: ./model\ndata: train.jsonl\n{output_dir}")
    assert main([*mine, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["rows_in"] == 3


def test_a_row_by_the_name_of_its_file(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("sub").mkdir()
    Path("train.jsonl").rename("sub/train.jsonl")
    Path("rows.json").write_text(json.dumps(ROWS[:2], indent=1))
    given = [*mine, "data.train=[sub/train.jsonl, rows.json]", "--json", "--row"]
    for row, name in (
        ("train.jsonl:2", "sub/train.jsonl:2"),
        ("./sub/train.jsonl:2", "sub/train.jsonl:2"),
        ("rows.json:6 (record 2)", "rows.json:6 (record 2)"),
        ("rows.json:6", "rows.json:6 (record 2)"),
        ("rows.json:#2", "rows.json:6 (record 2)"),
    ):
        assert main([*given, row]) == 0
        assert [shown["row"] for shown in json.loads(capsys.readouterr().out)["rows"]] == [name]
    assert main([*given, "rows.json:7"]) == 2
    assert "fix: --row 'rows.json:#2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("chat_template=chatmll", "data.chat_template=chatml"),
        ("data=nothing.jsonl", "there is no such file"),
        ("data.eval=nothing.jsonl", "there is no such file"),
        ("data={registry: ., train: alpaca}", "dataset_info.json"),
    ],
)
@pytest.mark.parametrize("command", ["data", "train"])
def test_a_wrong_name_is_told_before_anything_heavy_is_imported(
    mine: list[str], command: str, override: str, words: str
) -> None:
    code = (
        "import sys; from luthier.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "mine.yaml", override],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_long_texts_get_the_remedies_that_there_are(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.jsonl").write_text(json.dumps({"text": "word " * 40}) + "\n")
    assert main([*mine, "max_length=8"]) == 2
    said = capsys.readouterr().err
    assert "1 of 1 row cannot be used" in said
    assert "before the first answer" not in said
    assert (
        "fix: on_long_row=drop or truncate (their ends are lost), or rows of fewer tokens, or a larger max_length"
        in said
    )
    assert main([*mine, "max_length=8", "on_long_row=truncate"]) == 0


def test_files_that_are_left_out_are_said(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows").mkdir()
    Path("train.jsonl").rename("rows/train.jsonl")
    Path("rows/more.txt.old").write_text("x")
    Path("rows/README").write_text("x")
    assert main(["data", "mine.yaml", "data.train=rows", "on_bad_row=drop"]) == 0
    left_out = "beside it in the folder and left out: 'README, more.txt.old'"
    assert left_out in capsys.readouterr().out
    assert main(["init", "rows", "--model", "./model", "--output", "new.yaml"]) == 0
    assert left_out in capsys.readouterr().out


def test_the_view_is_the_text() -> None:
    from luthier.data.chat.renderer import ChatRenderer
    from luthier.data.chat.template import Template
    from luthier.types import Conversation, Message

    for make in (tokenizers.chatml, tokenizers.llama_like):
        tokenizer = make()
        renderer = ChatRenderer(tokenizer, Template.choose(tokenizer))
        example = Conversation((Message("user", "a 😀 你好\n\n b"), Message("assistant", "  é 👩‍👩‍👧 end")), "x:1")
        tokens = tokens_of(tokenizer, renderer.encode_conversation(example, 0))
        assert "".join(token.text for token in tokens) == renderer.encoded(example).evidence.text
        coloured = token_view(tokens, colour=True)
        assert re.sub(r"×\d", "", coloured.plain).replace("↵\n", "\n") == renderer.encoded(example).evidence.text
        assert any(span.style == "bold green" for span in coloured.spans)


def test_a_character_of_several_tokens_says_so(mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*mine, "--row", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    shares = [token["shares"] for token in row["tokens"] if token["text"]]
    assert max(shares) > 1
    assert sum(shares) == len(row["tokens"])
    assert main([*mine, "--row", "2"]) == 0
    out = capsys.readouterr().out
    assert "x×3: 3 tokens make up x" in out
    (last,) = [token for token in row["tokens"] if token["trained"] and token["text"] == "！"]
    assert f"[！×{last['shares']}]" in out
    assert main([*mine, "--samples", "1", "--html", "page.html"]) == 0
    assert "tokens that make this up" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the originals' tokenizers lie in ../shared/golden, which is not here")
@pytest.mark.parametrize(("kind", "folder", "end"), [("yuan", "yuan2", "<eod>"), ("baichuan", "baichuan2", "</s>")])
def test_an_end_token_of_sentencepiece_is_shown_as_it_is(kind: str, folder: str, end: str) -> None:
    from luthier.models.architectures import tokenizer_class

    tokenizer = tokenizer_class(kind)(vocab_file=str(GOLDEN / f"tokenizer_{folder}" / "tokenizer.model"))
    ids = [*tokenizer.encode("Hi 你好。", add_special_tokens=False), tokenizer.convert_tokens_to_ids(end)]
    assert texts_of(tokenizer, ids)[-2:] == ["。", end]


def test_histogram_bins_hold_everything() -> None:
    import numpy as np

    for lengths in ([5], [1, 2, 3], list(range(1000)), [3] * 50 + [90000]):
        bins = histogram(np.array(lengths))
        assert sum(count for _, _, count in bins) == len(lengths)
        assert len(bins) <= 11
