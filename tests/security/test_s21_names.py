"""S21: no shell, nothing evaluated, and names with what a shell would obey are names."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.models.sources.resolve import at_hand, resolve
from tests.helpers.command_line import luthier as command
from tests.helpers.tiny_models import tiny_llama
from tests.security.code import calls

METACHARACTERS = (
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "| touch executed",
    "& touch executed",
    "&& touch executed",
    "|| touch executed",
    "> executed",
    ">> executed",
    "< executed",
    "\ntouch executed",
    "\r\ntouch executed",
    "'; touch executed; '",
    '"; touch executed; "',
    "\\'; touch executed",
    "${IFS}touch${IFS}executed",
    "$((1+1))",
    "{touch,executed}",
    "*",
    "?",
    "[a-z]",
    "~",
    "!!",
    "#",
    "-rf",
    "--output=executed",
    "%s%n%x",
    "{0.__class__}",
    "{{ 7 * 7 }}",
    "__import__('os').mkdir('executed')",
    "a\tb",
    "=cmd|' /C calc'!A0",
)
STARTED: list[str] = []
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")


def note(event: str, given: tuple[Any, ...]) -> None:
    if event in PROCESSES and given and "sh" in Path(str(given[0])).name:
        STARTED.append(f"{event} {given}")


sys.addaudithook(note)


@pytest.fixture(autouse=True)
def nothing_started_yet() -> None:
    """The hook hears all tests of this process, and cannot be taken off again."""
    STARTED.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("s21") / "model")


def test_s21_nothing_is_evaluated() -> None:
    """Beside shells, eval and exec, which tests/test_architecture.py forbids."""
    found = [f"{file} {ast.unparse(call.func)}" for file, call in calls("compile", "__import__", "execfile", "input")]
    assert [one for one in found if not one.endswith("re.compile")] == ["cli/chat.py input"], "chat asks a person"
    started = [call.args[0] for _, call in calls("run", "Popen") if ast.unparse(call.func).startswith("subprocess.")]
    assert started
    assert not [first for first in started if isinstance(first, ast.Constant | ast.JoinedStr)], "a text, not a list"


@pytest.mark.parametrize("name", METACHARACTERS)
def test_s21_as_the_name_of_a_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (name, f"hf:{name}", f"hf:org/{name}", f"ms:{name}", f"pypi:{name}", f"pypi:a=={name}"):
        with pytest.raises(LuthierError):
            resolve(path, say=lambda text: None)
    assert not any(tmp_path.iterdir())
    assert STARTED == []
    assert at_hand(f"hf:{name}") is None


def test_s21_as_names_of_files_and_folders(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty files of data in a folder with such a name, a template, and a page: they are read and written as any other."""
    place = tmp_path / "$(touch executed); `touch executed`"
    place.mkdir()
    monkeypatch.chdir(place)
    files = []
    for number, name in enumerate(METACHARACTERS):
        file = place / f"{number} {name.replace('/', '')}.jsonl"
        file.write_text(json.dumps({"instruction": f"Say {number}", "output": f"number {number}"}) + "\n")
        files.append(str(file))
    config = place / "$(touch executed).yaml"
    tree = {
        "model": str(model),
        "data": {"train": [{"path": file.replace("[", "[[]")} for file in files]},
        "output_dir": "out; touch executed",
    }
    config.write_text(json.dumps(tree))
    before = sorted(path.name for path in place.iterdir())
    assert command("data", config, "--html", "`touch executed`.html") == 0
    assert sorted(path.name for path in place.iterdir()) == sorted([*before, "`touch executed`.html"])
    assert STARTED == []


@pytest.mark.prove
def test_s21_a_whole_run_under_such_names(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a; touch executed.jsonl").write_text('{"instruction": "Say a", "output": "a"}\n' * 4)
    for number, name in enumerate(METACHARACTERS[:8]):
        run = f"{number} {name}"
        given = [
            f"model={model}",
            "data=a; touch executed.jsonl",
            f"output_dir='{run}'",
            "max_steps=1",
            "report_to=[tensorboard]",
        ]
        assert command("train", *given) == 0
        assert (tmp_path / run / "manifest.json").is_file()
        assert not (tmp_path / "executed").exists()
    assert STARTED == []
