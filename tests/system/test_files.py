"""A folder is whole or absent: killed between any two steps of the file system, with a full disk, and beside other writers."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from luthier.errors import EnvironmentProblem
from luthier.system import files
from luthier.system.files import settle, verify, whole_folder, write_file, write_folder
from luthier.system.paths import cache_folder

STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
"""What the interpreter reports before it asks the system for it."""
KILLED, ENDED = 9, 0


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Runs `work` in a process that ends at the `step`-th thing that it asks of the file system, without any clean-up;
    whether there were so many."""
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event: str, _: object) -> None:
            nonlocal left
            left -= event in STEPS
            if left <= 0:
                os._exit(KILLED)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(ENDED)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (KILLED, ENDED)
    return code == KILLED


def write(target: Path, text: str) -> None:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        for name in ("a", "b", "inner/c"):
            (folder / name).write_text(text)

    write_folder(target, fill, {})


def content(target: Path) -> set[str]:
    assert verify(target) is None
    return {(target / name).read_text() for name in ("a", "b", "inner/c")}


@pytest.mark.prove
def test_a_kill_at_any_step_of_replacing_a_folder_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    seen = []
    for step in range(1, 200):
        target = tmp_path / str(step) / "adapter"
        write(target, "old")
        killed = killed_at(step, lambda: write(target, "new"))  # noqa: B023
        settle(target.parent)
        seen.append(content(target))
        assert [path.name for path in target.parent.iterdir()] == ["adapter"]
        write(target, "newer")
        assert content(target) == {"newer"}
        if not killed:
            break
    assert not killed
    assert len(seen) > 30
    assert seen == sorted(seen, key=lambda found: found != {"old"}), "the old one, then the new one"
    assert {"old"} in seen
    assert {"new"} in seen


@pytest.mark.prove
def test_a_kill_at_any_step_of_a_new_folder_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    for step in range(1, 200):
        target = tmp_path / str(step) / "adapter"
        target.parent.mkdir()
        killed = killed_at(step, lambda: write(target, "new"))  # noqa: B023
        settle(target.parent)
        assert not target.exists() or content(target) == {"new"}
        assert [path for path in target.parent.iterdir() if path != target] == []
        if not killed:
            break
    assert not killed


@pytest.mark.prove
def test_a_kill_while_it_settles_is_settled_at_the_next_start(tmp_path: Path) -> None:
    for step in range(1, 100):
        place = tmp_path / str(step)
        write(place / "adapter", "old")
        (place / "adapter").rename(place / ".luthier-old-adapter")
        write(place / "model", "new")
        write(place / ".luthier-old-model", "old")
        write(place / "half", "half")
        (place / "half").rename(place / ".luthier-new-adapter-0123abcd")
        killed = killed_at(step, lambda: settle(place))  # noqa: B023
        settle(place)
        assert content(place / "adapter") == {"old"}
        assert content(place / "model") == {"new"}
        assert len(list(place.iterdir())) == 2
        if not killed:
            break
    assert not killed
    assert step > 10


def test_a_failure_after_the_old_one_was_moved_puts_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "adapter", Path.rename
    write(target, "old")

    def no_new_one(path: Path, other: Path) -> Path:
        if path.name.startswith(".luthier-new-"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", no_new_one)
    with pytest.raises(EnvironmentProblem, match="the disk reports an error"):
        write(target, "new")
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model", existing="keep") as new:
        (new / "a").write_text("mine")
        with whole_folder(tmp_path / "model", existing="keep") as other:
            (other / "a").write_text("the same, by another")
        settle(tmp_path, "model")
        assert (new / "a").read_text() == "mine"
    assert (tmp_path / "model" / "a").read_text() == "the same, by another"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(tmp_path / "adapter", "old")
    write(tmp_path / "adapter", "new")
    assert content(tmp_path / "adapter") == {"new"}
    with pytest.raises(KeyError), whole_folder(tmp_path / "other", existing="replace"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_lies_in_the_place_of_an_export_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    target.mkdir()

    def write_while_another_writes() -> None:
        with whole_folder(target, existing="refuse") as new:
            (new / "a").write_text("a model")
            (target / "mine").write_text("put there meanwhile")

    with pytest.raises(EnvironmentProblem, match="not empty"):
        write_while_another_writes()
    assert [path.name for path in target.iterdir()] == ["mine"]
    (target / "mine").unlink()
    with whole_folder(target, existing="refuse") as new:
        (new / "a").write_text("a model")
    assert [path.name for path in target.iterdir()] == ["a"]


def to_cache(target: Path, fill: Callable[[Path], None]) -> None:
    with cache_folder(target) as folder:
        fill(folder)


def to_run(target: Path, fill: Callable[[Path], None]) -> None:
    write_folder(target, fill, {})


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"),
    SafetensorError(f"Error while serializing: I/O error: Disk quota exceeded (os error {errno.EDQUOT})"),
]


@pytest.mark.parametrize("writer", [to_cache, to_run])
@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_called_so_by_every_writer(
    error: Exception, writer: Callable[[Path, Callable[[Path], None]], None], tmp_path: Path
) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise error

    with pytest.raises(EnvironmentProblem, match=r"the disk is full|the quota") as caught:
        writer(tmp_path / "model", fill)
    assert caught.value.fix.startswith("free space")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_meanwhile_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="elsewhere/base: it is not there"):
        to_run(tmp_path / "model", lambda folder: Path("elsewhere/base").read_bytes() and None)


def test_files_are_as_readable_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        to_run(tmp_path / "model", lambda folder: save_file({"a": torch.zeros(1)}, folder / "w.safetensors"))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "model", *tmp_path.rglob("*.*")]}
    assert modes == {"model": 0o750, "w.safetensors": 0o640, files.MANIFEST: 0o640}


def test_a_file_is_replaced_in_one_move(tmp_path: Path) -> None:
    for step in range(1, 20):
        path = tmp_path / str(step) / "state.json"
        path.parent.mkdir()
        path.write_bytes(b"old")
        path.chmod(0o600)
        killed = killed_at(step, lambda: write_file(path, b"new"))  # noqa: B023
        assert path.read_bytes() in (b"old", b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        settle(path.parent)
        assert [left.name for left in path.parent.iterdir()] == ["state.json"]
        if not killed:
            break
    assert not killed
    assert path.read_bytes() == b"new"
