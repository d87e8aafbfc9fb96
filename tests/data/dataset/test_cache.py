"""Where the cache cannot be written: an error of the machine, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.data.dataset.samples import DTYPES, SampleBuffer, SampleWriter
from luthier.errors import EnvironmentProblem
from luthier.inspecting.data.report import FOUND
from tests.data.dataset.test_prepare import alpaca, run
from tests.helpers.looked_at import PLAIN, looked, prepare_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes into one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.prove
@pytest.mark.parametrize("rows", [200, 2_000])
def test_no_room_while_encoding(rows: int) -> None:
    """200 rows are refused when the files are closed, 2,000 when they are written."""
    wanted = run(alpaca(rows))
    fingerprint, folder = wanted.train.fingerprint, wanted.train.folder.parent  # type: ignore[attr-defined]
    del wanted
    for file in folder.rglob("*.*"):
        file.unlink()
    with (
        files_of_at_most(2_000),
        pytest.raises(EnvironmentProblem, match="cannot be written: the file is larger than may be") as caught,
    ):
        run()
    assert "LUTHIER_CACHE=" in caught.value.fix
    assert run().train.fingerprint == fingerprint


@pytest.mark.parametrize("which", ["input_ids", "lengths", "row_text"])
def test_a_disk_that_is_full_for_a_moment(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of which half is written is not gone on from: its rows would be there twice, or the arrays not fit."""
    rows = alpaca(1_200)  # three chunks
    whole = run(rows)
    wanted, folder = whole.train.fingerprint, whole.train.folder.parent  # type: ignore[attr-defined]
    shutil.rmtree(folder)
    append, appended = SampleWriter.append, list[int]()

    def failing(writer: SampleWriter, buffer: SampleBuffer) -> None:
        appended.append(len(buffer))
        if len(appended) != 2:
            append(writer, buffer)
            return
        for name, array in buffer.arrays(before=len(writer)).items():
            if name == which:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            writer._files[name].write(array.astype(DTYPES[name]).tobytes())
            writer.counts[name] += len(array)

    monkeypatch.setattr(SampleWriter, "append", failing)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        run()
    again = run()
    assert again.train.fingerprint == wanted
    assert again.ledger == whole.ledger


def test_a_full_disk() -> None:
    folder = run(alpaca(3)).train.folder  # type: ignore[attr-defined]
    begun = folder.parent.with_name(f".{folder.parent.name}.part") / "train"
    begun.mkdir(parents=True)
    (begun / "input_ids.npy").symlink_to("/dev/full")
    (folder.parent / "meta.json").unlink()
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        run()


def test_a_cache_that_is_no_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_folder(PLAIN)
    monkeypatch.setenv("LUTHIER_CACHE", "/dev/null")
    assert main(["data", "mine.yaml"]) == 3
    assert "/dev/null: cannot be written: File exists" in capsys.readouterr().err


def test_what_nobody_used_for_a_month_is_removed() -> None:
    run(alpaca(3))
    old = time.time() - 31 * 86_400
    one, other = "0" * 32, "f" * 32
    ours = (f".{one}.lock", f".{one}.part", f"{one}.json", f".luthier-new-{one}.json-0123abcd")
    others = ("notes.txt", "mine", "old.json", other, "a-folder")
    for name in (*ours, *others):
        Path("cache/encoded", name).touch()
        os.utime(Path("cache/encoded", name), (old, old))
    Path("cache/encoded", other).unlink()
    Path("cache/encoded", other).mkdir()  # as ours are called, and with none of our files
    Path("cache/encoded", other, "thesis.txt").touch()
    os.utime(Path("cache/encoded", other), (old, old))
    Path(f"cache/encoded/.{other}.lock").touch()
    first = {path.name for path in Path("cache/encoded").iterdir()} - {*ours, *others, f".{other}.lock"}
    kept = run(alpaca(4)).train.folder.parent.name  # type: ignore[attr-defined]
    found = {path.name for path in Path("cache/encoded").iterdir()}
    assert found == {kept, *first, *others, f".{other}.lock"}


@pytest.mark.prove
def test_a_report_is_made_where_nothing_can_be_kept_beside_the_data() -> None:
    prepare_folder(PLAIN)
    found = looked().duplicates
    (kept,) = Path("cache/encoded").rglob(FOUND)
    kept.unlink()
    kept.mkdir()
    assert looked().duplicates == found
    assert kept.is_dir()
    assert [path.name for path in kept.parent.glob(".*")] == []
