"""Files that are meant to hurt, from the command line: exit code 2 with the words that are due, or the row named; within 20 s
and 2 GB, without a traceback, and nothing is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

from luthier.cli import main
from tests.data import hostile_columnar, hostile_files, hostile_places
from tests.helpers.tiny_models import tiny_llama

CASES = hostile_files.CASES | hostile_columnar.CASES | hostile_places.PLACES | hostile_places.REGISTRIES
MOST_S = 20.0
MOST_BYTES = 2 << 30
QUICK = (
    "a gigabyte of line ends, .gz",
    "a row of 30,000 messages",
    "ten gigabytes of nothing",
    "an open quote of 100 MB",
    "parquet: fewer than no rows",
    "arrow: one text in 100,000 rows",
    "arrow: a gigabyte of rows of nothing",
    "a page of HTML, jsonl",
    "tar.gz",
    "a registry of 100,000 brackets",
)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 80
    assert set(QUICK) < set(CASES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; and all that `train` imports is there for the forks to share."""
    folder = tiny_llama(tmp_path_factory.mktemp("model"))
    (folder / "none.jsonl").write_text("{}\n")
    assert main(["train", f"model={folder}", f"data={folder}/none.jsonl", f"output_dir={folder}/run"]) == 2
    return folder


def in_a_child(work: object) -> tuple[int, float, int]:
    """Exit code, seconds and bytes of memory of a function that runs in a fork of this process: a crash ends only that."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(3 * int(MOST_S))
        try:
            code = work()  # type: ignore[operator]
        finally:
            if code == 99:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began, used.ru_maxrss * 1024


@pytest.mark.parametrize("name", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.prove) for one in CASES])
def test_a_hostile_file(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, work = CASES[name], tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    overrides: list[str] = []
    written, _, _ = in_a_child(lambda: (case.write(work), 0)[1])
    assert written == 0, "the case could not be made"
    overrides = [f"model={model}", "output_dir=runs/mine", *_data_of(work)]
    before = sorted(os.listdir(work))

    def run() -> int:
        screen = os.open(tmp_path / "screen", os.O_WRONLY | os.O_CREAT)
        os.dup2(screen, 1)
        os.dup2(screen, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        code = main(["train", *overrides])
        sys.stdout.flush()
        return code

    code, seconds, memory = in_a_child(run)
    shown = (tmp_path / "screen").read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in shown, shown[-3000:]
    assert code == 2, shown[:3000]
    for word in (*case.words, "fix:" if case.words else ""):
        assert word in shown, shown[:3000]
    assert seconds < MOST_S
    assert memory < MOST_BYTES
    assert max(map(len, shown.splitlines())) < 2000
    assert sorted(os.listdir(work)) == before


def _data_of(work: Path) -> list[str]:
    """What names the file that was written: the registry's entry, or the file itself."""
    names = sorted(path.name for path in work.iterdir())
    return ["data={registry: dataset_info.json, train: mine}"] if "dataset_info.json" in names else [f"data={names[0]}"]
