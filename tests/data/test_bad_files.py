"""112 bad data files, from the command line: exit code, file, line or row, field and remedy; nothing is left behind. Those
that are harmless by design are read, with the right number of rows.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

import pytest

from luthier.cli import main
from luthier.data import files
from luthier.data.readers import _limits
from tests.data import bad_files
from tests.data.bad_files import LONG, Case
from tests.data.bad_packed_files import COMPRESSED
from tests.helpers.tiny_models import tiny_llama

CATEGORIES: dict[str, dict[str, Case]] = {
    "encodings": bad_files.ENCODINGS,
    "line and format": bad_files.FORMAT,
    "JSON values": bad_files.VALUES,
    "types": bad_files.TYPES,
    "emptiness": bad_files.EMPTINESS,
    "roles": bad_files.ROLES,
    "schema": bad_files.SCHEMA,
    "length": bad_files.LENGTH,
    "duplicates and leaks": bad_files.DUPLICATES,
    "compressed and columnar": COMPRESSED,
    "paths": bad_files.PATHS,
}

COUNTS = {
    "encodings": 10,
    "line and format": 12,
    "JSON values": 8,
    "types": 14,
    "emptiness": 8,
    "roles": 12,
    "schema": 10,
    "length": 8,
    "duplicates and leaks": 6,
    "compressed and columnar": 14,
    "paths": 10,
}
NAMES = [(category, name) for category, cases in CATEGORIES.items() for name in cases]


def test_all_of_them_are_here() -> None:
    assert {category: len(cases) for category, cases in CATEGORIES.items()} == COUNTS
    assert len(NAMES) == 112


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def while_reading(patch: pytest.MonkeyPatch, path: Path, name: str) -> None:
    """Lets the file change or disappear after its first row was read, or be unreadable for others than root."""
    inner = files.readers.records

    def records(file: Any, start: int = 0) -> Any:
        for row in inner(file, start):
            yield row
            if name == "it changes":
                path.write_text("{}")
            else:
                path.unlink(missing_ok=True)

    if name in ("it changes", "it disappears"):
        patch.setattr(files.readers, "records", records)
    elif name == "no permission":
        plain = Path.open

        def opening(self: Path, *args: Any, **named: Any) -> IO[Any]:
            if self.name == path.name:
                raise PermissionError(13, "Permission denied", str(self))
            return plain(self, *args, **named)

        patch.setattr(Path, "open", opening)
    elif name == "bomb":
        patch.setattr(_limits, "FREE_BYTES", 1 << 20)


def own_length(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """`max_length=0` or less is counted from the length of the one row."""
    limit = next((item for item in overrides if item.startswith("max_length=")), "max_length=1")
    given = int(limit.partition("=")[2])
    if given > 0:
        return overrides
    kept = [item for item in overrides if item != limit]
    assert main(["data", *kept, "--json"]) == 0
    return [*kept, f"max_length={len(json.loads(capsys.readouterr().out)['rows'][0]['tokens']) + given}"]


@pytest.mark.parametrize(("category", "name"), NAMES)
def test_bad_file(
    category: str,
    name: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case: Case = CATEGORIES[category][name]
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("LUTHIER_CACHE", str(cache))
    given = [f"model={model}", "output_dir=runs/mine", *(case.write(work) or ["data=train.jsonl"])]
    given = own_length(given, capsys)
    shutil.rmtree(cache, ignore_errors=True)
    while_reading(monkeypatch, work / "train.jsonl", name)
    before = sorted(os.listdir(work))
    if case.code == 0:
        assert main(["data", *given, "--json"]) == 0, capsys.readouterr().err
        report = json.loads(capsys.readouterr().out)
        ledger, duplicates = report["ledger"], report["duplicates"]
        said = ledger | {degree: duplicates[degree]["groups"] for degree in ("exact", "near", "conflicts")}
        assert ledger["rows_trained"] == case.used
        assert ledger["rows_dropped"] == 0
        for word in case.words:
            key, _, value = word.partition(": ")
            assert said[key] == int(value)
        return
    assert main(["train", *given]) == case.code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 30
    for word in (*case.words, "fix:"):
        assert word in shown, shown
    assert LONG[:81] not in shown
    after = sorted(os.listdir(work))
    assert [item for item in after if item not in before] == [], "nothing is written"
    assert not list((cache / "encoded").glob("*") if cache.is_dir() else []), "no cache is left"
