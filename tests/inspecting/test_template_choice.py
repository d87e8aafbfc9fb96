"""`luthier init` tries the model's chat template on the rows, and writes what is to be written instead."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.cli import main
from luthier.data import early_check
from luthier.data.chat.check import CALL, FORECAST, RESULT, TOOLS, made_tokenizer
from luthier.data.chat.library import of_model_type
from luthier.errors import UserError
from luthier.inspecting import first_config
from luthier.inspecting.template_choice import fit, look, varied
from luthier.types import Conversation, Message
from tests.helpers import tokenizers

ASKED = (Message("user", "Hi"), Message("assistant", "Hello"))
SYSTEM = Message("system", "Be brief.")
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def talk(*messages: Message, tools: str = "") -> Conversation:
    return Conversation(messages, "x:1", tools)


def tokenizer(template: str | None, *tokens: str) -> Any:
    made = made_tokenizer(tokens)
    made.chat_template = template
    return made


YUAN = ("<sep>", "<eod>")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("yuan", "yuan@2026-08"),
        ("baichuan", "baichuan2@chat"),
        ("gemma2", "gemma@transformers"),
        ("qwen2_moe", "qwen@2.5"),
        ("qwen3", "qwen3@think"),
        ("mistral", "mistral@v3"),
        ("nothing_like_it", None),
    ],
)
def test_the_templates_of_a_family_are_found_by_the_name_of_the_model(model_type: str, name: str | None) -> None:
    found = [facts.full_name for facts in of_model_type(model_type)]
    assert found[:1] == ([name] if name else [])


def test_a_model_without_a_template_gets_that_of_its_family() -> None:
    found = fit(tokenizer(None, *YUAN), [talk(*ASKED)], "yuan")
    assert found.keys["chat_template"][0] == "yuan@2026-08"
    assert fit(tokenizer(None), [talk(*ASKED)], "yuan").keys["chat_template"][0] == "alpaca@stanford", "it has no <sep>"


def test_the_revision_of_a_configuration_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--org--name" / "snapshots" / commit
    tokenizer(None).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "yuan"}')
    (tmp_path / "talks.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    keys = {"output_dir": "runs/mine", "data": str(tmp_path / "talks.jsonl")}
    early_check.check(config.from_dict({"model": "org/name", **keys}))
    with pytest.raises(UserError, match="no chat template"):
        early_check.check(config.from_dict({"model": {"path": "org/name", "revision": commit}, **keys}))


def test_init_of_a_model_without_a_tokenizer_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "llama"}')
    Path("talks.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    assert main(["init", "talks.jsonl", "--model", "./model"]) == 2
    said = capsys.readouterr().err
    assert "holds no tokenizer" in said
    assert "fix: copy tokenizer.json and tokenizer_config.json from the model that this one was made of" in said
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(("tokens", "fix"), [(YUAN, "data.chat_template=yuan@2026-08"), ((), "data.chat_template=alpaca")])
def test_a_missing_template_is_told_with_that_of_the_family_before_anything_is_loaded(
    tokens: tuple[str, ...], fix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer(None, *tokens).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "yuan"}')
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(UserError, match="no chat template") as caught:
        early_check.check(config.load(None, [f"model={folder}", f"data={talks}"]))
    assert fix in caught.value.fix
    early_check.check(config.load(None, [f"model={folder}", f"data={talks}", "chat_template=chatml"]))
    talks.write_text('{"text": "a"}\n')
    early_check.check(config.load(None, [f"model={folder}", f"data={talks}"]))


def test_what_is_looked_at_before_anything_is_loaded_has_the_limits_of_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer(None).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "yuan"}')
    talks = tmp_path / "talks.jsonl.gz"
    talks.write_bytes(gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 9))
    given = [f"model={folder}", f"data={talks}"]
    with pytest.raises(UserError, match="no chat template"):
        early_check.check(config.load(None, given))
    with pytest.raises(UserError, match="unpacks to more than 9 bytes") as caught:
        early_check.check(config.load(None, [*given, "data.max_unpacked_bytes=9"]))
    assert "data.max_unpacked_bytes=" in caught.value.fix


def test_a_template_that_holds_all_needs_no_key() -> None:
    found = fit(tokenizer(NO_SYSTEM), [talk(*ASKED)])
    assert found.keys == {}
    assert "the model's own; it holds all of 1 conversation tried" in found.says


def test_system_texts_that_a_template_refuses_are_folded() -> None:
    found = fit(tokenizer(NO_SYSTEM), [talk(*ASKED), talk(SYSTEM, *ASKED)])
    assert found.keys["on_system"][0] == "fold"
    assert "System role not supported" in found.keys["on_system"][1]


def test_calls_of_tools_need_a_template_that_shows_them() -> None:
    called = talk(ASKED[0], CALL, RESULT, FORECAST, tools=TOOLS)
    without = fit(tokenizer(NO_SYSTEM), [talk(*ASKED), called])
    assert without.keys == {}
    assert "refuses 1 of 2 conversations" in without.says
    assert "none that comes with luthier holds all" in without.says
    tokens = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|endoftext|>", "<think>", "</think>")
    name, why = fit(tokenizer(NO_SYSTEM, *tokens), [talk(*ASKED), called]).keys["chat_template"]
    assert fit(tokenizer(first_config.template_choice.library()[name].text, *tokens), [called]).keys == {}
    assert "refuses 1 of 2" in why


@pytest.mark.prove
def test_a_model_without_a_template_gets_one_whose_tokens_it_has() -> None:
    found = fit(tokenizer(None), [talk(*ASKED)])
    assert found.keys["chat_template"][0] == "alpaca@stanford"
    assert found.keys["chat_template"][1].startswith("the model has no chat template")


def test_each_shape_is_tried() -> None:
    plain, with_system = [talk(*ASKED)] * 40, [talk(SYSTEM, *ASKED)] * 3
    assert len(varied([*plain, *with_system])) == 28
    assert look(None, []) is None


def rows(path: Path, *conversations: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in conversations), encoding="utf-8")


def test_init_writes_the_key_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows(Path("train.jsonl"), asked, [{"role": "system", "content": "Be brief."}, *asked])
    made = tokenizer(NO_SYSTEM)
    tokenizers.save(made, Path("model"))
    Path("model/config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(made)}))
    assert main(["init", "train.jsonl", "--model", "./model"]) == 0
    assert "with system texts in the first request" in capsys.readouterr().out
    assert config.load("mine.yaml").data.on_system == "fold"
    assert "# the model's template does not take system texts" in Path("mine.yaml").read_text()


@pytest.mark.prove
def test_init_of_a_model_that_is_not_here_says_what_was_not_checked(tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    code = (
        "import sys; from luthier.cli import main; code = main(sys.argv[1:]); "
        "assert 'transformers' not in sys.modules; sys.exit(code)"
    )
    arguments = ["init", "train.jsonl", "--model", "org/name"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "chat template: not checked, the model is not on this machine" in done.stdout
