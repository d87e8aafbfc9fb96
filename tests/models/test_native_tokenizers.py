"""The tokenizers of the native architectures: ids of the original programs, and of SentencePiece itself."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.models.architectures._pieces import USER_DEFINED, pieces_in
from luthier.models.reading import load_tokenizer
from tests.helpers.tiny_models import save_twin

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the originals' tokenizers lie in ../shared/golden, which is not here"
)
NAMES = {"yuan2": "yuan", "baichuan2": "baichuan"}

PAGE = (
    "the and of a to Hello world question answer don't It's 甄嬛 我是 家父 大理寺少卿 你好 您好 什么 可以 吗 长 ，。？！ "
    "def return for x in range(10): == != <= ==== ---- ... self.value None {} [] () \\ / # @ $ % & * _ "
    "1 23 456 7,890 3.14159 １２３ 0x1F ünïcode naïve Ωμέγα привет мир こんにちは 안녕 שלום مرحبا नमस्ते ไทย 🎻 😀 👩‍👩‍👧 ﷽ \u200b \u3000 "
    "aa aaa aaaa ababab <n> <td> <0x41> ▁ ▁▁ \ufeff é e\u0301 𝕏 龘 𠮷"
)
WORDS = PAGE.split(" ")
BETWEEN = [" ", " ", " ", "", "", "  ", "    ", "\n", "\n\n", "\t", " \n ", "        ", "\r\n"]


def varied_texts(count: int) -> Iterator[str]:
    """Words of many scripts, runs of blanks, repeated signs, code; the same at every call."""
    drawn = random.Random(7)
    for _ in range(count):
        parts = []
        for _ in range(drawn.randint(1, 24)):
            parts += [drawn.choice(WORDS) * drawn.choice([1, 1, 1, 2, 5]), drawn.choice(BETWEEN)]
        if drawn.random() < 0.2:
            parts.append(
                "".join(chr(drawn.choice([drawn.randint(32, 0x2FF), drawn.randint(0x4E00, 0x9FFF)])) for _ in range(9))
            )
        yield "".join(parts)


@pytest.fixture(scope="module", params=sorted(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files of the tokenizer, whose settings name other classes and other control tokens."""
    folder = tmp_path_factory.mktemp(name)
    for file in (GOLDEN / f"tokenizer_{name}").iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps({"model_type": NAMES[name]}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"text_{name}.json").read_text(encoding="utf-8"))
    return found


def test_ids_and_texts_as_recorded(tokenizer: Any, recorded: dict[str, Any]) -> None:
    for case in recorded["encode"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"], case
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"], case
    for token, index in recorded["special_ids"].items():
        assert tokenizer.convert_tokens_to_ids(token) == index
    assert len(tokenizer) == recorded.get("len", recorded["vocab_size"])


@pytest.mark.prove
def test_4000_texts_as_sentencepiece(tokenizer: Any, folder: Path) -> None:
    raw = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in varied_texts(4000):
        assert tokenizer.encode(text, add_special_tokens=True) == raw.encode(text), repr(text)


def test_after_a_control_token_a_text_begins_anew(tokenizer: Any, folder: Path) -> None:
    raw = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    end = tokenizer.eos_token
    for first, second in zip(varied_texts(100), list(varied_texts(200))[100:], strict=True):
        ids = [*raw.encode(first), tokenizer.eos_token_id, *raw.encode(second)]
        assert tokenizer.encode(first + end + second) == ids


@pytest.mark.prove
def test_loaded_by_auto_tokenizer_and_after_saving(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)  # as beside an adapter: no config.json there
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for again in (alone, AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path)):
        assert type(again) is type(tokenizer)
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.all_special_ids == tokenizer.all_special_ids
        assert again.get_vocab() == tokenizer.get_vocab()
        for text in (*varied_texts(50), f"a{tokenizer.eos_token} b  c"):
            assert again.encode(text) == tokenizer.encode(text)


def test_an_id_that_only_fills_up_the_embeddings_has_a_text(tokenizer: Any) -> None:
    """A model may answer with one; embeddings have more rows than there are tokens."""
    beyond = len(tokenizer) + 3
    ids = tokenizer("Hello")["input_ids"]
    assert "Hello" in tokenizer.decode([*ids, beyond])
    assert "Hello" in tokenizer.decode([*ids, beyond], skip_special_tokens=True)


def test_control_tokens_can_be_left_out_of_a_text(tokenizer: Any) -> None:
    ids = tokenizer.encode("你好" + tokenizer.eos_token)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "你好"
    assert tokenizer.eos_token_id in tokenizer.all_special_ids


def test_another_tokenizer_may_stand_in_the_folder(name: str, tmp_path: Path) -> None:
    folder = save_twin(tmp_path / "model", NAMES[name])
    assert type(load_tokenizer(folder)) is PreTrainedTokenizerFast
    assert type(AutoTokenizer.from_pretrained(folder)) is PreTrainedTokenizerFast


def test_pieces_of_the_file(name: str, folder: Path) -> None:
    raw = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = list(pieces_in(folder / "tokenizer.model"))
    assert [text for text, _, _ in pieces] == [raw.id_to_piece(index) for index in range(len(raw))]
    assert [score for _, score, _ in pieces] == [raw.get_score(index) for index in range(len(raw))]
    assert sum(kind == USER_DEFINED for _, _, kind in pieces) == (1086 if name == "baichuan2" else 0)
    (folder / "cut.model").write_bytes((folder / "tokenizer.model").read_bytes()[:100_003])
    with pytest.raises(ValueError, match="SentencePiece"):
        list(pieces_in(folder / "cut.model"))
    (folder / "cut.model").unlink()
