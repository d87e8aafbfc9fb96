"""A run's folder: who may write it, and what may lie in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.errors import UserError
from luthier.system.faults import faults_told
from luthier.system.files import MANIFEST, OURS, make_folder, refuse_odd, settle, write_file
from luthier.system.locks import Lock, held

CONFIG, LEDGER, REJECTED = "config.yaml", "ledger.json", "rejected.jsonl"
METRICS, TIMINGS, SAMPLES, ROW_LOSSES = "metrics.jsonl", "timings.jsonl", "samples.jsonl", "row_losses.jsonl"
ANSWERS, REPORT, SUSPECTS, TRACKERS = "answers.json", "report.html", "suspects.json", "trackers.json"
CHECKPOINTS, BEGINNING, ADAPTER, MODEL, MERGED = "checkpoints", "beginning", "adapter", "model", "merged"

RECORD = (METRICS, TIMINGS, SAMPLES, ROW_LOSSES)
"""What a run writes a line of at a time."""
DESCRIPTION = (CONFIG, LEDGER, REJECTED)
"""What a run writes before it begins."""
FILES = (MANIFEST, *DESCRIPTION, *RECORD, ANSWERS, REPORT, SUSPECTS, TRACKERS)
FOLDERS = (CHECKPOINTS, BEGINNING, ADAPTER, MODEL, MERGED)
OF_TRACKERS = ("tensorboard", "wandb", "swanlog", "mlruns", "mlflow.db", ".aim")
"""What trackers write into a run's folder. Under all these names a run writes, and under no other."""

LOCK, SPARE = f"{OURS}lock", f"{OURS}spare"
SPARE_BYTES = 32_768
"""Room that is kept for the last words: the manifest is a few thousand bytes."""

WRITABLE = ("a folder that may be written, with room", "free space or choose another output_dir, then the same command")
"""(expected, fix) of an error before the run has begun"""
GOES_ON = ("a folder that stays, with room", "free space, then the same command with --resume")
"""The same of one on the way."""


@contextmanager
def locked(folder: Path, enabled: bool = True) -> Iterator[Lock | None]:
    """Makes the folder, keeps a second run out of it, clears what a killed one left aside, and takes an empty folder away
    again.

    Raises:
        UserError: another run is writing it, or something lies there under the name of the lock.
        EnvironmentProblem: it cannot be written.
    """
    if not enabled:
        yield None
        return
    created = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        with faults_told(folder, *WRITABLE):
            _make(folder)
        with _lock(folder) as lock:
            with faults_told(folder, *WRITABLE):
                settle(folder)
                settle(folder / CHECKPOINTS)
                free_spare(folder)
            yield lock
    finally:
        for path in created:
            with suppress(OSError):  # it is not empty, or not there
                path.rmdir()


def _make(folder: Path) -> None:
    try:
        make_folder(folder)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            "output_dir", f"{folder} is or lies under a file", "a folder", "choose another output_dir"
        ) from None


@contextmanager
def _lock(folder: Path) -> Iterator[Lock]:
    entered = False
    try:
        with held(folder / LOCK, wait=False) as lock:
            entered = True
            yield lock
    except BlockingIOError:
        if entered:
            raise
        fix = "wait for it, or choose another output_dir"
        raise UserError("output_dir", f"another run is writing {folder}", "one run a folder", fix) from None


def check_free(folder: Path, own: Collection[str] = ()) -> None:
    """A new run begins in an empty folder, or in one where luthier was killed before its run began.

    Args:
        own: names that may be there.

    Raises:
        UserError: there is something else.
    """
    there = {path.name for path in folder.iterdir() if not path.name.startswith(OURS)} - {*own}
    if there:
        found = f"{folder} is not empty ({', '.join(sorted(there)[:3])})"
        raise UserError("output_dir", found, "a new or empty folder", f"output_dir={another(folder)}")


def another(folder: Path) -> Path:
    """A place for a run where `folder` is none: beside it, or in it where it has no name of its own."""
    return folder.with_name(f"{folder.name}-2") if folder.name.strip(".") else folder / "runs" / "mine"


def check_own(folder: Path) -> None:
    """What a run writes, appends to or replaces must be its own.

    Raises:
        UserError: under one of its names lies a link, a pipe or something else that luthier does not write through.
    """
    for name in FILES:
        refuse_odd(folder / name)
    for name in FOLDERS:
        refuse_odd(folder / name, folder=True)
    for name in OF_TRACKERS:
        if (folder / name).is_symlink():
            refuse_odd(folder / name)


def keep_spare(folder: Path) -> None:
    """Takes some room, to be given back to the manifest where the disk is full by then."""
    write_file(folder / SPARE, bytes(SPARE_BYTES))


def free_spare(folder: Path) -> None:
    with suppress(OSError):
        (folder / SPARE).unlink(missing_ok=True)
