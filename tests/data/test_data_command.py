"""`luthier data`: what a person and a program see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.reporting.token_view import histogram, token_view, tokens_of
from tests.helpers import tokenizers
from tests.helpers.tiny_models import tiny_llama

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
    assert "[Hello 👩‍👩‍👧<|im_end|>]" in out.replace("][", "")
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
    assert all(law["holds"] and law["rows"] == [] for law in found["laws"].values())
    assert found["ledger"]["rows_in"] == 3
    assert sum(item["rows"] for item in found["lengths"]["row"]["histogram"]) == 2
    assert main([*mine, "--row", "3"]) == 2
    assert "was dropped: unusable" in capsys.readouterr().err
    assert main([*mine, "--row", "99"]) == 2
    assert main(["data", "mine.yaml"]) == 2
    assert "1 of 3 rows cannot be used" in capsys.readouterr().err


def test_the_view_is_the_text() -> None:
    from luthier.data.render import ChatRenderer
    from luthier.data.template import Template
    from luthier.types import Conversation, Message

    for make in (tokenizers.chatml, tokenizers.llama_like):
        tokenizer = make()
        renderer = ChatRenderer(tokenizer, Template.choose(tokenizer))
        example = Conversation((Message("user", "a 😀 你好\n\n b"), Message("assistant", "  é 👩‍👩‍👧 end")), "x:1")
        tokens = tokens_of(tokenizer, renderer.encode_conversation(example, 0))
        assert "".join(token.text for token in tokens) == renderer.encoded(example).evidence.text
        coloured = token_view(tokens, colour=True)
        assert coloured.plain.replace("↵\n", "\n") == renderer.encoded(example).evidence.text
        assert any(span.style == "bold green" for span in coloured.spans)


def test_histogram_bins_hold_everything() -> None:
    import numpy as np

    for lengths in ([5], [1, 2, 3], list(range(1000)), [3] * 50 + [90000]):
        bins = histogram(np.array(lengths))
        assert sum(count for _, _, count in bins) == len(lengths)
        assert len(bins) <= 11
