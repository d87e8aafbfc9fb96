"""What lies around a run: a small disk, a folder that vanishes, closed and full streams, variables that make no sense."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import EnvironmentProblem, UserError
from luthier.system.faults import WORDS, fault, raise_fault
from luthier.system.launch import Launch, launch
from luthier.system.paths import cache_dir
from tests.faults.conftest import Small, Whole, content, different
from tests.faults.test_disk import gone_on
from tests.helpers.command_line import luthier
from tests.helpers.configs import load, refusal
from tests.helpers.faults import Plan, What
from tests.helpers.processes import ENVIRONMENT, ROOT

SOME_MEGABYTES = (1, 4, 8, 16, 18.5, 20, 22.25, 22.625, 24, 28, 30.5, 32, 36, 40, 44.75, 48)
"""In which different things fail: many sizes, for what fails at one depends on the machine's state."""
SIZES = (4, 16, 40, 64, 100, 200, 400, 700, 1_000, 1_400, 2_000, 8_000)
"""kB"""


def mounted(folder: Path, kilobytes: int) -> bool:
    """Whether `folder` is a disk of its own now."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "kilobytes", [pytest.param(size, marks=() if size == 200 else pytest.mark.prove) for size in SIZES]
)
def test_a_small_disk(kilobytes: int, small: Small, whole: Whole, tmp_path: Path) -> None:
    """The run says that it is full, and goes on to the same end where there is room: here, on a larger disk."""
    disk = tmp_path.resolve() / "disk"
    if not mounted(disk, kilobytes):
        pytest.skip("no disk can be mounted here: run as root, in a container that may mount")
    try:
        run, elsewhere = disk / "run", tmp_path.resolve() / "elsewhere" / "run"
        elsewhere.parent.mkdir()
        ended = small.train(run, cache=small.cache(elsewhere))
        if ended.code == 0:
            assert not different(run, whole)
            return
        assert ended.code == 3, ended.said
        assert "Traceback" not in ended.said
        assert "disk" in ended.said[-600:]
        manifest = run / "manifest.json"
        if manifest.is_file():
            assert json.loads(manifest.read_text())["state"] in ("not begun", "failed")
        if run.is_dir():
            shutil.copytree(run, elsewhere)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    again = small.train(elsewhere, "--resume")
    assert again.code == 0, again.said
    assert not different(elsewhere, whole)


@pytest.mark.parametrize("how", ["removed", pytest.param("moved", marks=pytest.mark.prove)])
def test_a_folder_that_vanishes_is_noticed(how: str, small: Small, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path.resolve() / "place" / "run"
    run.parent.mkdir()
    plan = Plan(What.SIGNAL, whole.first("rename", "step-000002"), signal.SIGSTOP)
    pid = small.commands.start(small.command(run), plan, under=(run.parent,), LUTHIER_CACHE=str(small.cache(run)))
    small.commands.wait_until_stopped(pid)
    if how == "removed":
        shutil.rmtree(run)
    else:
        run.rename(run.with_name("moved"))
    os.kill(pid, signal.SIGCONT)
    ended = small.commands.ended()
    assert ended.code == 3, ended.said
    assert "removed, moved or replaced" in ended.said
    assert not run.exists()


@pytest.mark.parametrize("how", ["still", *(pytest.param(how, marks=pytest.mark.prove) for how in ("back", "on"))])
def test_a_clock_that_is_wrong(how: str, small: Small, whole: Whole, tmp_path: Path) -> None:
    """It stands still, or leaps; a step may take no time at all."""
    run = tmp_path.resolve() / "place" / "run"
    run.parent.mkdir()
    ended = small.train(run, LUTHIER_CLOCK=how)
    assert ended.code == 0, ended.said
    assert not different(run, whole)


@pytest.mark.prove
@pytest.mark.parametrize("megabytes", [*SOME_MEGABYTES, 64, 96, 128, 192, 256, 384, 512])
def test_too_little_address_space(megabytes: float, small: Small, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path.resolve() / "place" / "run"
    run.parent.mkdir()
    ended = small.train(run, room_bytes=int(megabytes * (1 << 20)))
    assert "Traceback" not in ended.said
    assert "bug" not in ended.said
    if ended.code:
        assert ended.code == 3, ended.said
        assert "memory" in ended.said
    assert not [wrong for wrong in gone_on(small, run, whole) if not wrong.endswith("manifest.json is another")]
    assert manifests(run) == manifests(whole.run)


def manifests(run: Path) -> dict[str, Any]:
    """Those of a run without the rounding that the layout's proof measured: with little memory libraries take other paths."""
    found = {name: one for name, one in content(run).items() if name.endswith("manifest.json")}
    for one in found.values():
        if "decisions" in one:
            one["decisions"] = {
                key: value for key, value in one["decisions"].items() if key not in ("proof", "layout_reason")
            }
    assert len(found) > 2
    return found


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("megabytes", [60, 200, 400, 600, 800, 1_000, 1_300, 1_600, 2_000])
def test_too_little_address_space_from_the_start(megabytes: int, small: Small, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m luthier train {small.folder / "mine.yaml"} output_dir={tmp_path / "run"}'
    line = f"ulimit -v {megabytes * 1_000}; {command}"
    variables = {**os.environ, **ENVIRONMENT, "LUTHIER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", line], env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "memory" in done.stderr


CLOSED = ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "| head -n 1"]


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("how", CLOSED)
def test_a_run_needs_no_streams(how: str, small: Small, whole: Whole, tmp_path: Path) -> None:
    """It has its files: what nobody can read is not said."""
    run = tmp_path.resolve() / "place" / "run"
    run.parent.mkdir()
    keys = f"output_dir={run} sample_prompts=[]"
    line = f'"{sys.executable}" -m luthier train {small.folder / "mine.yaml"} {keys} {how}; exit ${{PIPESTATUS[0]}}'
    variables = {**os.environ, **ENVIRONMENT, "LUTHIER_CACHE": str(small.cache(run))}
    done = subprocess.run(["bash", "-c", line], env=variables, cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (whole.run / weights).read_bytes()
    assert json.loads((run / "manifest.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(("how", "code"), [("> /dev/full", 3), (">&-", 0), ("2> /dev/full", 0)])
def test_other_commands_say_where_they_cannot_print(how: str, code: int) -> None:
    line = f'"{sys.executable}" -m luthier template list {how}'
    done = subprocess.run(["bash", "-c", line], env={**os.environ, **ENVIRONMENT}, capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert (b"standard output: the disk is full" in done.stderr) == (code == 3)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "1e3"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"},
    ],
    ids=str,
)
def test_variables_of_torchrun_that_make_no_sense(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="as torchrun sets them") as caught:
        launch()
    assert caught.value.fix.startswith("unset ")
    assert luthier("train", "model=x", "data=nothing.jsonl", "output_dir=x") == 2


def test_a_launch_by_torchrun_and_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() == Launch(0, 1, 0, several=False)
    monkeypatch.setenv("LOCAL_RANK", "3")  # some schedulers set it alone
    assert launch() == Launch(0, 1, 0, several=False)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launch() == Launch(5, 8, 3, several=True)


def test_the_cache_is_where_its_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value, wanted in (
        ("LUTHIER_CACHE", "~/mine", tmp_path / "mine"),
        ("LUTHIER_CACHE", "", tmp_path / ".cache" / "luthier"),
        ("LUTHIER_CACHE", "  ", tmp_path / ".cache" / "luthier"),
        ("XDG_CACHE_HOME", "", tmp_path / ".cache" / "luthier"),
        ("XDG_CACHE_HOME", "~/other", tmp_path / "other" / "luthier"),
    ):
        monkeypatch.delenv("LUTHIER_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(name, value)
        assert cache_dir() == wanted
        assert wanted.is_dir()


def test_words_for_what_a_disk_does() -> None:
    for number in (errno.EMFILE, errno.ESTALE, errno.EFBIG, errno.EROFS, errno.ENOSPC):
        assert fault(OSError(number, os.strerror(number))) == WORDS[number]
        assert fault(Exception(f"Error: {os.strerror(number)} (os error {number})")) == WORDS[number]
    assert fault(MemoryError()) == WORDS[errno.ENOMEM]
    assert (
        fault(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
        == WORDS[errno.ENOMEM]
    )
    assert fault(KeyError("no space")) is None
    assert fault(OSError("a library's own text")) is None


def test_what_fails_while_a_model_is_read_may_be_the_machine() -> None:
    for error in (OSError(errno.EIO, "?"), MemoryError(), RuntimeError("can't start new thread")):
        with pytest.raises(EnvironmentProblem, match="cannot be read"):
            raise_fault("model", error)
    raise_fault("model", FileNotFoundError(errno.ENOENT, "No such file"))  # which is not the machine's fault
    raise_fault("model", RuntimeError("a size mismatch"))
    with pytest.raises(EnvironmentProblem, match="not enough memory"):
        raise_fault("model", RuntimeError("std::bad_alloc"))


def test_words_that_are_cut_off_are_not_believed_with_too_little_memory() -> None:
    """As those of a library that had no memory for its own message."""
    program = """
import resource
from pathlib import Path
from luthier.system.faults import raise_fault
from luthier.system.memory import ROOM
raise_fault("model", RuntimeError("[enforce fail a"))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ROOM // 4,) * 2)
raise_fault("model", RuntimeError("[enforce fail a"))
"""
    command, variables = [sys.executable, "-c", program], {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "model: cannot be read: there is not enough memory" in done.stderr
    assert "line 8" in done.stderr, "it is the second that is not believed"


@pytest.mark.parametrize(("megabytes", "code"), [(1_400, 3), (1_600, 0)])
def test_an_address_space_without_room_for_the_libraries(megabytes: int, code: int) -> None:
    """They would end the process, and say nothing."""
    line = f"ulimit -v {megabytes * 1_000}; '{sys.executable}' -m luthier explain r"
    variables = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(["bash", "-c", line], env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("ulimit -v" in done.stderr) == (code == 3)


def test_paths_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home, as in a shell; what no file system takes is refused by its key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = load("model: ~/model\ndata: ~/rows.jsonl\noutput_dir: ~/runs/mine\n")
    assert (found.model.path, found.data.train[0].path) == (f"{tmp_path}/model", f"{tmp_path}/rows.jsonl")
    assert found.output_dir == f"{tmp_path}/runs/mine"
    for key in ("model.path", "data.train[0].path", "data.registry", "data.chat_template", "output_dir"):
        for path in ("a\\0b", "x" * 5_000):
            said = refusal("model: {path: m}\ndata: {train: [{path: d}]}\noutput_dir: o\n", f'{key}="{path}"')
            assert key.split("[")[0].split(".")[-1] in said
            assert len(said) < 1_000
