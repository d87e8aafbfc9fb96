"""Languages and scripts of the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.inspecting.data.duplicates import decoder
from luthier.inspecting.data.languages import TOO_SHORT, language_mix, language_of, script_of
from tests.helpers.tiny_models import tiny_tokenizer
from tests.inspecting.data.test_duplicates import write


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The luthier builds and tunes the violin in a small workshop.", "en"),
        ("Le luthier construit et accorde le violon dans un petit atelier.", "fr"),
        ("这位制琴师在一个小作坊里制作小提琴。", "zh"),
        ("Скрипичный мастер делает скрипку в маленькой мастерской.", "ru"),
        ("4", TOO_SHORT),
        ("Yes.", TOO_SHORT),
        ("", TOO_SHORT),
    ],
)
def test_language_of(text: str, code: str) -> None:
    assert language_of(text) == code


def test_script_of() -> None:
    assert [script_of(character) for character in "aя你あア한Ａ1 !😀"] == [
        "Latin", "Cyrillic", "CJK", "Hiragana", "Katakana", "Hangul", "Latin", "", "", "", "",
    ]  # fmt: skip


def test_a_bounded_sample_of_the_answers_only(tmp_path: Path) -> None:
    rows = [
        ("Was ist das? Das ist ein langer deutscher Satz.", "This is an answer in plain English, and long enough.")
    ] * 30
    found = language_mix(write(tmp_path / "x", rows), decoder(tiny_tokenizer()), rows=20)
    assert (found.rows, found.rows_looked_at) == (30, 20)
    assert found.languages == {"en": 20}
    assert found.scripts == {"Latin": 1.0}
