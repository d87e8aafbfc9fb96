"""What a person has is not written over: twenty ways in which an output could hit somebody's file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_odd_files import TEXT, snapshot
from tests.helpers.command_line import luthier
from tests.helpers.killing import write_config


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with its model and data."""
    folder = tmp_path_factory.mktemp("given").resolve()
    write_config(folder)
    return folder


@pytest.fixture
def place(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the configuration, and with things of somebody's."""
    folder = tmp_path.resolve() / "work"
    shutil.copytree(given, folder)
    config = folder / "mine.yaml"
    config.write_text(config.read_text().replace(str(given), str(folder)))
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text(TEXT)
    (folder / "notes.html").write_text(TEXT)
    monkeypatch.chdir(folder)
    return folder


def with_file(name: str) -> Callable[[Path], list[str]]:
    """A run's folder in which a file of somebody's has a name that a run uses."""

    def arguments(place: Path) -> list[str]:
        (place / "runs").mkdir()
        (place / "runs" / name).write_text(TEXT)
        return ["train", "mine.yaml", "output_dir=runs"]

    return arguments


def linked(place: Path, name: str, to: str) -> str:
    (place / name).symlink_to(place / to)
    return name


def demo(data: Path) -> list[str]:
    data.mkdir()
    (data / "train.jsonl").write_text(TEXT)
    return [*DEMO, data.name.removesuffix("-data")]


INIT = ["init", "train.jsonl", "--model", "model", "--output"]
DEMO = ["demo", "--output"]
WAYS: dict[str, Callable[[Path], list[str]]] = {
    "a page over the training data": lambda _: ["data", "mine.yaml", "--html", "train.jsonl"],
    "a page over the training data, forced": lambda _: ["data", "mine.yaml", "--html", "train.jsonl", "--force"],
    "a page over held-out data by another name, forced": lambda _: ["data", "mine.yaml", "--html", "mine/../held.jsonl", "--force"],
    "a page over the configuration, forced": lambda _: ["data", "mine.yaml", "--html", "mine.yaml", "--force"],
    "a page over the model's file, forced": lambda _: ["data", "mine.yaml", "--html", "model/config.json", "--force"],
    "a page over a page of somebody's": lambda _: ["data", "mine.yaml", "--html", "notes.html"],
    "a page through a link": lambda at: ["data", "mine.yaml", "--html", linked(at, "page.html", "mine/thesis.txt"), "--force"],
    "a page through a link to nothing": lambda at: ["data", "mine.yaml", "--html", linked(at, "page.html", "mine/new.txt")],
    "a page in the place of a folder": lambda _: ["data", "mine.yaml", "--html", "mine"],
    "a run in the working folder": lambda _: ["train", "mine.yaml", "output_dir=."],
    "a run in the model's folder": lambda _: ["train", "mine.yaml", "output_dir=model"],
    "a run in a folder with something in it": lambda _: ["train", "mine.yaml", "output_dir=mine", "--resume"],
    "a run below a file": lambda _: ["train", "mine.yaml", "output_dir=notes.html/run"],
    "a run through a link": lambda at: ["train", "mine.yaml", f"output_dir={linked(at, 'link', 'mine')}"],
    **{f"a run beside a {name} of somebody's": with_file(name) for name in (
        "config.yaml", "ledger.json", "rejected.jsonl", ".lock", ".luthier-lock", ".manifest.json.tmp", "manifest.json", "report.html")},
    "a configuration over another": lambda _: [*INIT, "mine.yaml"],
    "a configuration through a link to nothing": lambda at: [*INIT, linked(at, "new.yaml", "mine/new.yaml")],
    "an export over a folder": lambda _: ["export", "model", "--to", "merged", "--output", "mine"],
    "the demo's data over somebody's": lambda at: demo(at / "demo-data"),
    "the demo's data through a link": lambda at: [*DEMO, linked(at, "demo-data", "mine").removesuffix("-data")],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_would_hit_a_file(way: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = WAYS[way](place)
    before = snapshot(place)
    code = luthier(*arguments)
    said = capfd.readouterr().err
    assert code == 2, said
    assert "fix:" in said
    assert snapshot(place) == before


def test_the_fix_is_another_place(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder, fix in ((".", "runs/mine"), ("mine", "mine-2"), ("mine/..", "mine/../runs/mine")):
        assert luthier("train", "mine.yaml", f"output_dir={folder}") == 2
        assert capfd.readouterr().err.endswith(f"fix: output_dir={fix}\n")
    assert luthier(*INIT, "mine/thesis.txt") == 2
    assert capfd.readouterr().err.endswith("fix: --output mine/thesis-2.txt\n")
    assert luthier("data", "mine.yaml", "--html", "mine/thesis.txt") == 2
    assert "--html mine/thesis-2.html" in capfd.readouterr().err


def test_a_page_is_written_over_a_page_and_with_force_over_another_file(place: Path) -> None:
    assert luthier("data", "mine.yaml", "--html", "page.html") == 0
    page = (place / "page.html").read_text()
    assert luthier("data", "mine.yaml", "--html", "page.html") == 0
    assert luthier("data", "mine.yaml", "--html", "notes.html", "--force") == 0
    assert (place / "notes.html").read_text() == page == (place / "page.html").read_text()
    assert not list(place.glob(".*"))


def test_a_cache_in_a_folder_of_somebodys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in folders that have the names of the cache's is not tidied away."""
    old = time.time() - 60 * 86_400
    cache = place / "cache"
    theirs = [
        cache / folder / name for folder in ("encoded", "reports") for name in ("old.json", "thesis/a.txt", ".x.lock")
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXT)
    for path in (*theirs, *(one.parent for one in theirs)):
        os.utime(path, (old, old))
    monkeypatch.setenv("LUTHIER_CACHE", str(cache))
    assert luthier("data", "mine.yaml") == 0
    assert luthier("data", "mine.yaml", "--longest") == 0
    assert all(path.read_text() == TEXT for path in theirs)
