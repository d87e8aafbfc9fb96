"""`luthier template list | show | diff | check`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from luthier.cli import main
from luthier.data.chat.check import shapes
from luthier.data.chat.difference import difference, row_at
from luthier.data.chat.library import library
from luthier.errors import UserError
from tests.helpers import tokenizers

ROW = {"instruction": "What is the sea?", "output": "Water and wind."}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"text": "plain"}) + "\n" + "{broken\n", encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder from which a tokenizer can be taken."""
    folder = tokenizers.save(tokenizers.chatml(), tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def test_list_names_every_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "list"]) == 0
    table, _, legend = capsys.readouterr().out.partition("\n\n")
    assert {line.split()[0].rstrip("*") for line in table.splitlines()[1:]} == set(library())
    facts = [one.facts for one in library().values()]
    said = {word.rstrip(":") for word in legend.split()}
    assert {word for one in facts for word in (one.system, one.thinking)} <= said
    assert main(["template", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["chat_template"] for one in listed] == list(library())
    assert all(one["source"] and one["stop"] for one in listed)


def test_list_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["template", "list"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 90
    wrapped = " ".join(" ".join(table).split())
    for one in library().values():
        assert one.facts.source.split()[-1] in wrapped


def test_show_prints_a_file_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "show", "zephyr"]) == 0
    text = capsys.readouterr().out
    assert text == library()["zephyr"].text
    (tmp_path / "mine.jinja").write_text(text, encoding="utf-8")
    assert difference("zephyr", str(tmp_path / "mine.jinja"), shapes()["one turn"])[0].side == "both"
    assert main(["template", "show", "zephir"]) == 2
    assert "fix: luthier template show zephyr\n" in capsys.readouterr().err


@pytest.mark.prove
def test_diff_shows_where_two_part_and_what_is_trained(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "diff", "alpaca", "alpaca@llamafactory", "--row", f"{data}:1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("[-<s>-]Below is")
    assert "### Response:{+↵\n+}<<Water and wind.</s>>>" in shown
    assert "only in alpaca@llamafactory" in shown
    assert main(["template", "diff", "alpaca", "alpaca@stanford", "--row", f"{data}:1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True
    assert [one["trained"] for one in found["stretches"]] == [False, True]
    assert main(["template", "diff", "alpaca", "alpaca@stanford"]) == 0
    shown = capsys.readouterr().out
    assert "alpaca and alpaca@stanford are equal on the small conversation: the same tokens, trained alike" in shown
    assert main(["template", "diff", "alpaca", "alpaca@stanford", "--row", f"{data}:1"]) == 0
    assert f"are equal on {data}:1:" in capsys.readouterr().out


def header(name: str, **changed: str) -> str:
    """A template of the library with other values in its header."""
    text = library()[name].text
    for key, value in changed.items():
        text, count = re.subn(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
        assert count == 1
    return text


def test_diff_sees_what_is_learned_where_another_token_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two templates of the same text, one of which ends inner answers in the targets alone."""
    other = tmp_path / "other.jinja"
    other.write_text(header("baichuan", inner_stop="no"), encoding="utf-8")
    assert main(["template", "diff", "baichuan", str(other)]) == 0
    shown = capsys.readouterr().out
    assert "<<It is Paris.>>[-<<≠</s>>><reserved_102>-]{+<reserved_102>+}And of" in shown
    assert f"1 only in baichuan, 1 only in {other}" in shown
    assert "are equal" not in shown
    asked = shapes()["only the first answer trained"]
    *_, end = difference("baichuan", "baichuan", asked)
    assert (end.side, end.ids, end.text, end.instead) == ("both", (), "", "</s>")


@pytest.mark.prove
def test_diff_compares_every_sample_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, begin = library()["deepseek@r1"].text, "{{- bos_token -}}"
    first_only = "{%- if messages | selectattr('role', 'equalto', 'user') | list | length == 1 -%}Hello. {%- endif -%}"
    assert begin in text
    (tmp_path / "other.jinja").write_text(text.replace(begin, begin + first_only), encoding="utf-8")
    assert main(["template", "diff", "deepseek@r1", str(tmp_path / "other.jinja")]) == 0
    first, _, second = capsys.readouterr().out.partition("\n\n")
    assert first.startswith("<s>{+Hello.+}Answer in one")
    assert "{+" not in second
    split = difference("deepseek@r1", "deepseek", shapes()["several turns"])
    assert {one.side for one in split if one.sample < 2} == {"first"}
    assert {one.side for one in split if one.sample == 2} == {"both", "first", "second"}


def test_diff_with_a_models_tokenizer(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--row", f"{data}:1", "--model", str(model), "--json"]
    assert main(["template", "diff", "auto", "chatml", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    (added,) = [one for one in found["stretches"] if one["side"] != "both"]
    assert added["side"] == "first"
    assert "You are a helpful assistant." in added["text"]
    tokenizer = tokenizers.chatml()
    assert tokenizer.decode(added["ids"]) == added["text"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("train.jsonl", "no row"),
        ("1", "--row train.jsonl:1"),
        ("array.json:7", "fix: --row 'array.json:#2'"),
        ("train.jsonl:9", "fix: --row train.jsonl:3"),
        ("train.jsonl:2", "a text"),
        ("train.jsonl:3", ":3"),
    ],
)
def test_rows_that_cannot_be_shown(data: Path, monkeypatch: pytest.MonkeyPatch, row: str, words: str) -> None:
    monkeypatch.chdir(data.parent)
    Path("array.json").write_text(json.dumps([ROW, ROW], indent=2), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        row_at(row)
    assert words in str(caught.value)


def test_check_says_what_passes_and_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.jinja").write_text(tokenizers.TURNS.replace("<end_of_turn>", "</s>"), encoding="utf-8")
    assert main(["template", "check", str(tmp_path / "mine.jinja")]) == 0
    shown = capsys.readouterr().out
    assert "pass     several turns" in shown
    assert "refused  system: TemplateError: System role not supported" in shown
    assert f" of {len(shapes())} shapes pass" in shown
    (tmp_path / "mine.jinja").write_text(tokenizers.TURNS.replace("<end_of_turn>", ""), encoding="utf-8")
    assert main(["template", "check", str(tmp_path / "mine.jinja"), "--json"]) == 2
    outcomes = json.loads(capsys.readouterr().out)
    assert {one["shape"] for one in outcomes} == set(shapes())
    assert "no stop token" in outcomes[0]["reason"]


def test_check_finds_a_claim_that_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.jinja").write_text(header("chatml@plain", tools="yes"), encoding="utf-8")
    assert main(["template", "check", str(tmp_path / "mine.jinja")]) == 2
    shown = capsys.readouterr().out
    assert "pass     one turn" in shown
    assert "claimed, but refused: tools; tools, system, several turns; " in shown
    one_line = "{%- if '\\n\\n' in messages[0].content -%}{{- raise_exception('one line') -}}{%- endif -%}"
    (tmp_path / "mine.jinja").write_text(library()["chatml@plain"].text + one_line, encoding="utf-8")
    assert main(["template", "check", str(tmp_path / "mine.jinja")]) == 2
    assert "claimed, but refused: line breaks\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("notes.txt", "Be kind to the model.", "no Jinja in it"),
        ("train.jsonl", '{"instruction": "a"}\n{"instruction": "b"}\n', "no Jinja in it"),
        ("tokenizer_config.json", '{"chat_template": "{% for message in messages %}{% endfor %}"}', "this is JSON"),
    ],
)
def test_a_file_that_is_no_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert main(["template", "check", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert "luthier template show chatml" in shown.err
    assert not shown.out


def test_check_the_template_of_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "check", "auto"]) == 2
    assert "--model org/name" in capsys.readouterr().err
    assert main(["template", "check", "auto", "--model", str(model)]) == 0
    assert "pass     emoji" in capsys.readouterr().out


def test_diff_tells_what_cannot_be_compared_and_compares_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", "diff", "gemma", "guanaco"]) == 0
    said = capsys.readouterr().out
    assert "gemma: " in said
    assert "; compared without the system text" in said
    assert " in both, " in said
