"""What a word of the command line makes of a section that the file has: a bare value sets its main part, a map replaces it."""

from __future__ import annotations

import re

import pytest

from tests.helpers.configs import load

FILE = """
model:
  path: org/name
  dtype: float16
  quantization: {kind: nf4, double_quant: true}
data:
  train: [{path: a.jsonl, format: alpaca}]
  system: Be brief.
  max_length: 64
tuning: {kind: lora, r: 4}
"""


@pytest.mark.parametrize("before", [(), ("dtype=float16",)])
def test_another_model_is_held_as_the_file_says(before: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    model = load(FILE, *before, "model=./tiny").model
    assert (model.path, model.dtype, model.quantization and model.quantization.kind) == ("./tiny", "float16", "nf4")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("word", "paths"), [("data=x.jsonl", ["x.jsonl"]), ("data=[x.jsonl, y]", ["x.jsonl", "y"])])
def test_other_data_are_read_as_the_file_says(word: str, paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data = load(FILE, word).data
    assert ([file.path for file in data.train], data.system, data.max_length) == (paths, "Be brief.", 64)
    assert "data.train replaces that of mine.yaml:7, whose format is left out" in capsys.readouterr().err


def test_keys_that_were_typed_first_stay_without_a_file() -> None:
    run = load("{}", "dtype=float32", "max_length=8", "model=m", "data=d.jsonl")
    assert (run.model.path, run.model.dtype, run.data.max_length) == ("m", "float32", 8)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model={path: ./tiny}", "model replaces that of mine.yaml:2, whose dtype, quantization is left out"),
        ("data={train: x}", "data replaces that of mine.yaml:6, whose system, max_length is left out"),
        ("quantization=null tuning=full", "tuning replaces that of mine.yaml:10, whose r is left out"),
        ("quantization=int8", "model.quantization replaces that of mine.yaml:5, whose double_quant is left out"),
        ("model={path: ./tiny, dtype: auto, quantization: null}", ""),
    ],
)
def test_what_a_section_loses_is_said(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(FILE, *re.split(r" (?=[a-z]+=)", word))
    assert capsys.readouterr().err == (f"command line: {said}\n" if said else "")


def test_the_same_kind_again_keeps_its_keys() -> None:
    assert load(FILE, "tuning=lora").tuning == load(FILE).tuning
    assert load(FILE, "quantization=nf4").model == load(FILE).model
    assert load("model: m\ndata: d\ntuning: {r: 8}\n", "tuning=lora").tuning.r == 8  # type: ignore[attr-defined]
