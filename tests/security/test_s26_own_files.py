"""S26: what is made cannot be written by everybody, temporary files are for one user alone, and another user's checkpoints are
refused."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.runs.checkpoint import Checkpoints
from luthier.system import owners
from luthier.system.files import append_to, write_file, write_folder
from luthier.system.paths import cache_dir
from tests.helpers.command_line import luthier as command
from tests.helpers.killing import write_config
from tests.security.code import nodes

SOMEBODY = 12_345
ANOTHER = 12_346
"""Neither the user of the test, nor root."""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def writable_by_all(folder: Path) -> list[str]:
    found = [
        path for path in (folder, *folder.rglob("*")) if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH
    ]
    return sorted(str(path.relative_to(folder.parent)) for path in found)


@pytest.mark.prove
def test_s26_a_run_and_its_checkpoints_are_not_world_writable(open_umask: None, tmp_path: Path) -> None:
    """Not even where the umask would let it."""
    config = write_config(tmp_path)
    keys = ["training.num_train_epochs=1", "training.max_steps=2", "save_steps=1", "report_to=[]"]
    assert command("train", config, f"output_dir={tmp_path / 'deep' / 'run'}", *keys) == 0
    assert (tmp_path / "deep" / "run" / "checkpoints" / "step-000002").is_dir()
    assert not writable_by_all(tmp_path / "deep")


def test_s26_whatever_is_written_by_name(open_umask: None, tmp_path: Path) -> None:
    (tmp_path / "a.json").touch(0o666)
    write_file(tmp_path / "a.json", b"{}")
    append_to(tmp_path / "b.jsonl").close()
    write_folder(tmp_path / "new" / "c", lambda folder: (folder / "d").touch(0o777), {})
    assert [name for path in tmp_path.iterdir() for name in writable_by_all(path)] == []


def test_s26_the_cache_is_private(open_umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o700


def test_s26_temporary_files_are_made_by_tempfile_alone() -> None:
    """Which makes them for one user (0600, folders 0700), under names that nobody knows before."""
    names = {"mktemp", "tmpnam", "gettempdir", "gettempprefix"}
    texts = [(file, node) for file, node in nodes(ast.Constant) if isinstance(node.value, str)]
    assert [file for file, node in texts if node.value.startswith(("/tmp", "/var/tmp"))] == []
    assert [file for file, node in nodes(ast.Attribute) if node.attr in names] == []


@AS_ROOT
@pytest.mark.parametrize("part", ["", "state.json", "tensors.safetensors"])
def test_s26_a_checkpoint_of_another_user(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    checkpoints.save(1, {"a": 1}, {"run": "x"}, None)
    os.chown(checkpoints.path(1) / part, SOMEBODY, SOMEBODY)
    assert checkpoints.verified(1, "x") == {"a": 1}, "root of a container takes what is its user's"
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    with pytest.raises(UserError, match="another user") as caught:
        checkpoints.verified(1, "x")
    variable, _, owner = caught.value.fix.partition(" ")[0].partition("=")
    assert (variable, owner) == (owners.TRUSTED, str(SOMEBODY))
    monkeypatch.setenv(variable, f"somebody-else, {owner}")
    assert checkpoints.verified(1, "x") == {"a": 1}


@AS_ROOT
@pytest.mark.prove
def test_s26_a_resume_says_so_and_can_be_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    given = ["train", config, f"output_dir={tmp_path / 'run'}", "training.num_train_epochs=1", "save_steps=1"]
    assert command(*given, "training.max_steps=2") == 0
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"stopped"'))
    os.chown(tmp_path / "run" / "checkpoints" / "step-000002", SOMEBODY, SOMEBODY)
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    assert command(*given, "training.max_steps=2", "--resume") == 2
    said = capfd.readouterr().err
    assert "step-000002: belongs to another user" in said
    assert f"fix: {owners.TRUSTED}={SOMEBODY} before the same command" in said
    monkeypatch.setenv(owners.TRUSTED, str(SOMEBODY))
    assert command(*given, "training.max_steps=2", "--resume") == 0
