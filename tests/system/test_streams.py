"""What reaches a terminal is shown and acts on nothing there."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from luthier.cli import main
from luthier.system.console import Screen
from luthier.system.streams import visible

HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202egpj.exe\u2066 x\ufeff \U000e0041 \x00\x08\r \x7f \udcff"
SHOWN = (
    r"\u001b[2J\u001b]0;title\u0007 \u009b31m \u202egpj.exe\u2066 x\ufeff \udb40\udc41 \u0000\u0008\u000d \u007f \udcff"
)
AS_IT_IS = "naïve 你好\tשלום\n👩‍👧 می‌خواهم ½ é [bold] ភាសា\u200bខ្មែរ ภาษา\u200bไทย \u200fשלום (1)\u200e"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible(AS_IT_IS) == AS_IT_IS


@given(st.text())
def test_json_means_the_same_when_it_is_visible(text: str) -> None:
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text
    assert visible(visible(text)) == visible(text)
    visible(text).encode()


def test_a_console_shows_text_in_whatever_holds_it_and_keeps_its_own_colours() -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, color_system="standard", width=200, highlight=False)
    table = Table()
    table.add_column("a\x1b[5m")
    table.add_row(HOSTILE.replace("\udcff", ""))
    screen.print(table)
    screen.print("\x1b[1mplain", markup=False)
    screen.print(Text("\u202ered", style="red"))
    written = out.getvalue()
    assert "\x1b[31m" in written
    assert "\u202e" not in written
    assert r"\u202ered" in written
    for hostile in ("\x1b[2J", "\x1b]0;", "\x1b[5m", "\x1b[1mplain", "\x9b"):
        assert hostile not in written


def on_a_terminal(*arguments: str, folder: Path) -> bytes:
    """What a command writes where standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "luthier", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # Linux says so where the other end is closed
            pass
        os.close(ours)
        assert process.wait(60) in (0, 2)
    return written


def test_a_template_is_shown_on_a_terminal_and_handed_on_to_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text("{# \x1b[2J #}{{ messages[0].content }}\u202e\n", encoding="utf-8")
    assert main(["template", "show", str(tmp_path / "mine.jinja")]) == 0
    assert capfd.readouterr().out == "{# \x1b[2J #}{{ messages[0].content }}\u202e\n"
    written = on_a_terminal("template", "show", "mine.jinja", folder=tmp_path)
    assert b"\x1b" not in written
    assert rb"{# \u001b[2J #}" in written
    assert "\u202e".encode() not in written


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", f"{HOSTILE[:12]}.yaml"],
        ["train", os.fsdecode(b"\xff\xfe.yaml")],
        ["train", "model=x", f"da\x1b[2Jta={HOSTILE[:12]}"],
        ["train", "model=x", "data=d", "chat_template=\u202ex"],
        ["train", "model=x", "data=d", "tuning=\u202ex"],
        ["train", f"{HOSTILE[:12]}"],
        [f"{HOSTILE[:12]}"],
        ["chat", "x", f"--se\x1b[2J{HOSTILE[:12]}"],
        ["chat", "x", "--seed", f"{HOSTILE[:12]}"],
        ["explain", f"\u202e{HOSTILE[:12]}"],
        ["template", "show", f"{HOSTILE[:12]}\u202e"],
        ["template", "check", f"{HOSTILE[:12]}\u202e"],
        ["runs", f"{HOSTILE[:12]}\u202e"],
        ["eval", f"{HOSTILE[:12]}\u202e", "--data", "x.jsonl"],
        ["export", f"{HOSTILE[:12]}\u202e", "--to", "merged", "--output", "x"],
        ["data", f"{HOSTILE[:12]}\u202e.yaml"],
        ["init", f"{HOSTILE[:12]}\u202e.jsonl"],
        ["doctor", f"{HOSTILE[:12]}\u202e.yaml"],
        ["config", f"{HOSTILE[:12]}\u202e"],
    ],
    ids=lambda arguments: visible(" ".join(arguments)),
)
def test_no_command_line_reaches_the_terminal_raw(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    shown = "".join(capfd.readouterr())
    assert code == 2 or arguments[0] == "runs", shown
    assert shown.strip()
    assert visible(shown) == shown
