"""What is proposed where a file, a template or a format is wrong is a line of the command that was typed, and works there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from luthier import config
from luthier.cli import main

ROW = {"instruction": "Who are you?", "output": "A luthier."}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text('{"model_type": "gpt2"}')
    Path("tiny/tokenizer_config.json").write_text("{}")
    for name, row in {"train.jsonl": ROW, "qa.jsonl": {"question": "Why?", "reply": "So."}}.items():
        Path(name).write_text(json.dumps(row) + "\n")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """(what is said, the proposed line)"""
    assert main(words) == 2
    said = capsys.readouterr().err
    (line,) = [one.removeprefix("fix: ") for one in said.splitlines() if one.startswith("fix: ")]
    return said, line


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["data=no.txt"], "data.train=PATH/no.txt"),
        (["data.train={path: no.txt, format: text}"], "'data.train={path: PATH/no.txt, format: {kind: text}}'"),
        (["data=[train.jsonl, no.txt]"], "data.train=[train.jsonl,PATH/no.txt]"),
        (["data=train.jsonl", "data.eval=no.txt"], "eval=PATH/no.txt"),
        (["data=qa.jsonl"], "'data.train={path: qa.jsonl, format: {kind: alpaca, instruction: question, input: null, "),
        (["data=train.jsonl"], "data.chat_template=alpaca"),
        (["data=train.jsonl", "registry=nowhere"], "data.registry=PATH/dataset_info.json; or leave registry out, "),
    ],
)
def test_another_file_or_template_is_an_override(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, line = refused(capsys, "train", "model=./tiny", *words)
    assert line.startswith(fix)
    (word, *_) = shlex.split(line.partition(";")[0])
    assert config.load(None, ["model=./tiny", *words, word])


def test_the_line_of_the_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("model: ./tiny\ndata:\n  train:\n  - train.jsonl\n  - no.txt\n")
    said, line = refused(capsys, "train", "mine.yaml")
    assert said.startswith("mine.yaml:5: data.train[1].path: no.txt: there is no such file")
    assert line == "data.train=[train.jsonl,PATH/no.txt]"
    assert refused(capsys, "data", "mine.yaml")[0].startswith("mine.yaml:5: data.train[1].path: no.txt: ")
    assert refused(capsys, "train", "mine.yaml", "data=no.csv")[0].startswith("data.train[0].path: no.csv: ")


@pytest.mark.parametrize(
    ("words", "found", "fix"),
    [
        (["no.txt", "--model", "./tiny"], "no such file", "luthier init PATH/no.txt --model ./tiny"),
        (["data.train=./train.jsonl", "--model", "./tiny"], "a key of", "luthier init ./train.jsonl --model ./tiny"),
        (["train.jsonl", "model=./tiny"], "a key of", "luthier init train.jsonl --model ./tiny"),
        (["train.jsonl"], "no model", "luthier init train.jsonl --model NAME"),
        (["train.jsonl", "--model", "./nowhere"], "model ./nowhere: there is no such file or folder", "--model pypi:"),
        (["no.txt", "--model", "./tiny", "--output", "conf/x.yaml"], "there is no folder conf", "mkdir -p conf"),
    ],
)
def test_a_line_of_init_is_met_with_one(
    words: list[str], found: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said, line = refused(capsys, "init", *words)
    assert found in said
    assert line.startswith(fix)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["tuning=lorra"], "tuning=lora"),
        (["tuning=qlora"], "tuning=lora quantization=nf4"),
        (["optim=paged_adamw_32bit"], "optim=paged_adamw"),
        (["chat_template=llama3x"], "data.chat_template=llama3"),
        (["deepspeed=ds.json", "r=4"], "torchrun --nproc-per-node 2 -m luthier train "),
        (
            ["llm_int8_threshold=6.0"],
            "it is about 8 bits, which nothing asks for; leave it out, or write 'quantization={",
        ),
        (["bogus=1"], "luthier explain lists all keys"),
    ],
)
def test_a_word_of_another_tool_or_a_misspelt_one_is_met_with_the_right_one(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["model=./tiny", "data=train.jsonl"]
    said, line = refused(capsys, "train", *given, *words)
    assert line.startswith(fix)
    if fix.startswith("torchrun"):
        assert "there is no ZeRO" in said
        assert config.load(None, line.split()[6:]).tuning == config.load(None, [*given, "r=4"]).tuning
    elif "=" in fix.partition(" ")[0]:
        assert config.load(None, [*given, *line.split()])


def test_a_kind_of_another_tool_is_told_once_and_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    said, _ = refused(capsys, "train", "model=m", "data=d", "optim=paged_adamw_32bit", "max_steps=abc")
    assert said.count("paged_adamw_32bit") == 1
    assert "write optim=paged_adamw\n" in said
    assert "training.max_steps: wrong value, found 'abc'" in said


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (
            ["train", "train.jsonl"],
            "luthier train data=train.jsonl model=NAME, or luthier init train.jsonl --model NAME",
        ),
        (["train", "train.jsonl", "model=m", "r=4"], "luthier train data=train.jsonl model=m r=4, or "),
        (["data", "runs/a"], "luthier data runs/a/config.yaml, or luthier data --after runs/a"),
        (["train", "runs/a"], "luthier train runs/a/config.yaml --resume"),
    ],
)
def test_data_or_a_run_in_the_place_of_a_configuration(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").write_text("model: ./tiny\ndata: train.jsonl\n")
    assert refused(capsys, *words)[1].startswith(fix)
