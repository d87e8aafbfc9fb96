"""S4: code that comes with a model runs only where the command line says so, and then what runs is shown and stays what it is."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.config import load
from luthier.errors import UserError
from luthier.models.sources import code
from luthier.models.sources.resolve import resolve
from tests.helpers.command_line import luthier as command
from tests.helpers.hub_server import HubServer, Repo, files_of
from tests.helpers.tiny_models import tiny_llama
from tests.models.test_hub import NAME, Machine
from tests.security.code import nodes

COMMIT = "0123456abc" * 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose code leaves a file where it is imported."""
    folder = tiny_llama(tmp_path / "model")
    marker = tmp_path / "executed"
    lines = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfrom transformers import LlamaConfig\nclass Own(LlamaConfig): pass\n"
    (folder / "configuration_own.py").write_text(lines)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "configuration_own.Own"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "words", [["chat"], ["inspect"], ["download"], ["doctor"], ["export", "--to", "merged", "--output", "out"]]
)
def test_s4_without_the_flag_nothing_runs(
    words: list[str], model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    assert main([words[0], str(model), *words[1:]]) == 2
    assert "--trust-remote-code" in capfd.readouterr().err
    assert not (model.parent / "executed").exists()


def test_s4_with_the_flag_what_may_run_is_shown(model: Path) -> None:
    said: list[str] = []
    resolve(str(model), trust_remote_code=True, say=said.append)
    digest = hashlib.sha256((model / "configuration_own.py").read_bytes()).hexdigest()
    assert any("configuration_own.py" in line and digest in line for line in said)
    assert not (model.parent / "executed").exists(), "to look is not to run"


@pytest.mark.parametrize(
    "line",
    ["trust_remote_code: true", "model:\n  path: a\n  trust_remote_code: true", "training: {trust_remote_code: yes}"],
)
def test_s4_no_configuration_turns_it_on(line: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: d\n{line}\n" + ("" if "path" in line else "model: m\n"))
    with pytest.raises(UserError, match=r"trust.remote.code"):
        load(file, [])


def test_s4_off_is_what_every_function_begins_with() -> None:
    """And nothing but the flag of the command line (and the caller of the library) turns it on."""
    given = [node.value for _, node in nodes(ast.keyword) if node.arg == "trust_remote_code"]
    for _, node in nodes(ast.FunctionDef):
        plain = [*node.args.posonlyargs, *node.args.args]
        pairs = [
            *zip(reversed(plain), reversed(node.args.defaults), strict=False),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ]
        given += [default for name, default in pairs if name.arg == "trust_remote_code"]
    constants = [value.value for value in given if isinstance(value, ast.Constant)]
    assert len(constants) > 10
    assert not any(constants)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_s4_code_of_a_hub_is_taken_by_its_commit_alone(revision: str | None, model: Path) -> None:
    with pytest.raises(UserError, match="tomorrow") as caught:
        code.admit(model, "hf:org/name", revision, COMMIT, lambda text: None)
    assert f"hf:org/name@{COMMIT}" in caught.value.fix
    code.admit(model, "hf:org/name", COMMIT, COMMIT, lambda text: None)
    code.admit(tiny_llama(model.parent / "plain"), "hf:org/name", revision, COMMIT, lambda text: None)


@pytest.mark.prove
def test_s4_a_hub_for_real(model: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.repos[NAME] = Repo()
        hub.repos[NAME].commit(files_of(model), "main")
        machine, commit = Machine(tmp_path / "home", hub), hub.repos[NAME].refs["main"]
        refused = machine.download(NAME, "--trust-remote-code")
        assert refused.returncode == 2
        assert f"hf:{NAME}@{commit}" in refused.stderr
        taken = machine.download(f"hf:{NAME}@{commit}", "--trust-remote-code")
        assert taken.returncode == 0, taken.stderr
        assert hashlib.sha256((model / "configuration_own.py").read_bytes()).hexdigest() in taken.stderr
        assert machine.download(NAME, "--revision", commit, "--trust-remote-code").returncode == 0
    assert not (model.parent / "executed").exists()


def test_s4_a_revision_stands_once(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("download", f"hf:org/name@{COMMIT}", "--revision", "main") == 2
    assert f"fix: hf:org/name@{COMMIT}" in capfd.readouterr().err
