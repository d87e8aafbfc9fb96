"""What is meant to hurt ends with exit code 2 and one screen, soon and in little memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import config
from luthier.cli import main
from luthier.data.steps.order import Mixture
from luthier.errors import LuthierError, UserError
from luthier.system.streams import visible
from tests.config.hostile import FILES, WORDS

SECONDS = 20
BYTES = 2 << 30
LINES = 40


def refused(code: int, shown: str, took_s: float) -> None:
    assert code == 2, shown[:2_000]
    assert took_s < SECONDS
    assert 0 < len(shown.strip().splitlines()) <= LINES, shown[:2_000]
    assert "Traceback" not in shown
    assert "bug of luthier" not in shown
    assert visible(shown) == shown
    assert len(shown) < 20_000


def arguments(name: str, folder: Path) -> list[str]:
    if name in FILES:
        (folder / "mine.yaml").write_bytes(FILES[name])
        return ["train", "mine.yaml"]
    return ["train", "model=x", "data=train.jsonl", *WORDS[name]]


NAMES = [*FILES, *WORDS]


def test_there_are_enough() -> None:
    assert len(NAMES) >= 100


@pytest.mark.parametrize("name", NAMES, ids=[visible(name)[:60] for name in NAMES])
def test_it_is_refused_soon_in_one_screen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    code = main(arguments(name, tmp_path))
    refused(code, "".join(capfd.readouterr()), time.monotonic() - began)


def in_little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


@pytest.mark.prove
@pytest.mark.parametrize("name", NAMES, ids=[visible(name)[:60] for name in NAMES])
def test_a_process_of_its_own_takes_less_than_two_gigabytes(name: str, tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *arguments(name, tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        preexec_fn=in_little_memory,
        check=False,
        timeout=60,
    )
    refused(done.returncode, (done.stdout + done.stderr).decode(), time.monotonic() - began)


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "nan"],
        ["--temperature", "1e308"],
        ["--temperature", "inf"],
        ["--top-p", "nan"],
        ["--max-new-tokens", str(2**64)],
        ["--seed", str(2**64)],
        ["--seed", "-1"],
    ],
    ids=" ".join,
)
def test_numbers_of_the_command_line_have_bounds(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    code = main(["chat", "no/such", *words])
    shown = "".join(capfd.readouterr())
    refused(code, shown, time.monotonic() - began)
    assert words[0] in shown


def test_a_kind_of_another_package_says_which_code_it_runs_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "__init__.py").write_text("print('a stranger speaks', flush=True)\n")
    (tmp_path / "strangers" / "inner.py").write_text("raise SystemExit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code = main(["train", "model=x", "data=d.jsonl", "tuning=strangers.inner:Class"])
    out, error = capfd.readouterr()
    assert code == 2
    assert "a stranger speaks" in out
    file = tmp_path / "strangers" / "inner.py"
    assert error.startswith(f"kind 'strangers.inner:Class': runs the code of strangers.inner, {file}\n")
    assert "the code of strangers.inner fails: SystemExit" in error


def test_of_many_problems_twenty_are_shown() -> None:
    tree = {"model": "m", "data": "d.jsonl", **{f"bogus_{number}": 1 for number in range(500)}}
    with pytest.raises(LuthierError) as caught:
        config.from_dict(tree)
    lines = str(caught.value).splitlines()
    assert "and 480 more" in lines
    assert len(lines) == 22


TEXTS = st.text(
    st.sampled_from(list("ab=:-[]{}&*!|>'\"%@`#,? \n\t\x00\x1b\ud800\u202e0123.e")) | st.characters(), max_size=40
)


@given(st.lists(TEXTS, max_size=3))
def test_no_words_of_the_command_line_raise_anything_but_our_errors(words: list[str]) -> None:
    for word in words:
        try:
            config.load(None, ["model=x", "data=d.jsonl", word, f"output_dir={word}", f"tuning={word}"])
        except LuthierError as error:
            visible(str(error)).encode()


def test_weights_too_unlike_for_an_epoch_are_refused() -> None:
    assert Mixture((10, 1_000), (0.99, 0.01), "all_exhausted").counts == (99_000, 1_000)
    with pytest.raises(UserError, match="an epoch of"):
        Mixture((10, 10), (1e-6, 1e6), "all_exhausted")
