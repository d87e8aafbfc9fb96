"""Chat: turns, context, streams, and the command as it is typed or piped."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.errors import UserError
from luthier.inference.chat import Chat, Settings
from luthier.inference.generation import generate
from luthier.inference.opened import Opened, open_model
from luthier.types import Message


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return open_model(str(run))


def test_each_answer_is_given_what_was_said(opened: Opened) -> None:
    chat = Chat(opened, "Be brief.", Settings(max_new_tokens=12))
    pieces: list[str] = []
    first = chat.say("Hi", on_text=pieces.append)
    assert "".join(pieces) == first.text
    second = chat.say("And?")
    said = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", first.text),
        Message("user", "And?"),
    ]
    (expected,) = generate(
        opened.model, opened.tokenizer, [opened.renderer.prompt_ids(said)], max_new_tokens=12, stop_ids={2}
    )
    assert second == expected
    assert chat.messages == [*said, Message("assistant", second.text)]
    chat.reset()
    assert chat.messages == [Message("system", "Be brief.")]
    assert chat.say("Hi") == first


def test_sampling_is_repeatable_and_a_question_asked_again_is_drawn_anew(opened: Opened) -> None:
    settings = Settings(temperature=1.5, max_new_tokens=16, seed=4)
    first = Chat(opened, settings=settings).say("Hi")
    assert Chat(opened, settings=settings).say("Hi") == first
    assert Chat(opened, settings=Settings(temperature=1.5, max_new_tokens=16, seed=5)).say("Hi") != first


def test_a_full_context_is_said_and_the_conversation_kept(opened: Opened) -> None:
    chat = Chat(opened, settings=Settings(max_new_tokens=1000))
    answer = chat.say("Hi")
    if not answer.stopped:
        assert chat.used_tokens == opened.context_tokens
        assert "full: 256 of 256 tokens" in (chat.warning or "")
    before = list(chat.messages)
    with pytest.raises(UserError, match="context has 256"):
        chat.say("word " * 300)
    assert chat.messages == before
    short = Chat(opened, settings=Settings(max_new_tokens=4))
    short.say("Hi")
    assert short.warning is None


def test_one_answer_and_exit(run: Path, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(run), "--prompt", "Hi", "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out == Chat(opened, settings=Settings(max_new_tokens=10)).say("Hi").text + "\n"


def test_piped_requests_are_turns(
    run: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = ["Hi", "", "And?", "word " * 400, "/reset", "Hi", "/quit", "never asked"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(requests) + "\n"))
    assert main(["chat", str(run), "--max-new-tokens", "8", "--system", "Be brief."]) == 0
    shown = capsys.readouterr()
    chat = Chat(opened, "Be brief.", Settings(max_new_tokens=8))
    first, second = chat.say("Hi").text, chat.say("And?").text
    assert shown.out == f"{first}\n{second}\n{first}\n"
    assert "/reset starts anew" in shown.err
    assert "(forgotten)" in shown.err


@pytest.mark.prove
def test_the_command_in_a_process_of_its_own_writes_utf8_to_a_pipe(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "chat", str(run), "--max-new-tokens", "5"],
        input="你好 🎻\n".encode(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().endswith("\n")


def test_wrong_flags_and_models_end_with_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tmp_path), "--prompt", "Hi"]) == 2
    assert main(["chat", "x", "--temperature", "-1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_model_without_a_template_cannot_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.tiny_models import tiny_llama

    assert main(["chat", str(tiny_llama(tmp_path / "plain", chat_template=None)), "--prompt", "Hi"]) == 2
    assert "chat template" in capsys.readouterr().err
