"""S24: what luthier is installed with is pinned, hashed and listed; a package with a known hole is refused at the start."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from luthier.cli import main
from luthier.errors import EnvironmentProblem
from luthier.system import floors
from luthier.system.floors import FLOORS, check_floors
from tests.helpers.command_line import luthier as command

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^+\s]+)(?:\+\w+)? --hash=sha256:(?P<hash>[0-9a-f]{64})")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_s24_every_pin_is_locked_by_the_hash_of_its_file() -> None:
    """Stale? `make lock`."""
    first, *rest = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# Of Python 3.")
    found = [LOCKED.fullmatch(line) for line in rest]
    assert all(found)
    assert {one["name"]: one["version"] for one in found if one} == pins()


def test_s24_the_bill_of_materials_lists_the_same() -> None:
    bill = json.loads((ROOT / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == PROJECT["version"]
    assert {part["name"]: part["version"].partition("+")[0] for part in bill["components"]} == pins()
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for part in bill["components"]:
        assert part["hashes"][0]["content"] in lock
        assert part["purl"].startswith(f"pkg:pypi/{part['name']}@")


def test_s24_both_are_made_by_one_command() -> None:
    """From what pip reports; here of a report of two packages."""
    packages = [
        {
            "metadata": {"name": name, "version": "1.0", "license": "MIT"},
            "download_info": {"archive_info": {"hashes": {"sha256": "0" * 64}}},
        }
        for name in ("b_b", "A.a")
    ]
    report = {
        "install": packages,
        "environment": {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"},
    }
    code = (
        "import pathlib, sys; sys.path.insert(0, 'docs'); import supply_chain as made; out = pathlib.Path(sys.argv[1]); "
        "made.LOCK, made.BILL = out / 'lock', out / 'bill'; made.main()"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, folder], input=json.dumps(report), text=True, check=True, cwd=ROOT)
        assert (Path(folder) / "lock").read_text().splitlines()[1] == f"a-a==1.0 --hash=sha256:{'0' * 64}"
        assert json.loads((Path(folder) / "bill").read_text())["components"][1]["licenses"] == [
            {"license": {"name": "MIT"}}
        ]
    assert "docs/supply_chain.py" in (ROOT / "Makefile").read_text()


def test_s24_an_install_takes_nothing_below_the_floors() -> None:
    ranges = {(one := Requirement(line)).name: one.specifier for line in PROJECT["dependencies"]}
    for name, (least, why) in FLOORS.items():
        assert why
        if name in ranges:
            before = (
                f"{least.rpartition('.')[0]}.{int(least.rpartition('.')[2]) - 1}" if not least.endswith(".0") else "0.1"
            )
            assert before not in ranges[name], name


def train_beside(name: str, line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`luthier train`, refused where a package stands in the first place of the environment whose metadata say `line`."""
    info = place / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{line}")
    monkeypatch.syspath_prepend(place)
    check_floors.cache_clear()
    try:
        assert command("train", "model=m", "data=d") == 3
    finally:
        check_floors.cache_clear()


@pytest.mark.parametrize("name", FLOORS)
def test_s24_an_older_release_is_refused_with_the_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where another tool has installed it over ours: an environment whose first place has the old release."""
    train_beside(name, "Version: 1.0\n", tmp_path, monkeypatch)
    said = capfd.readouterr().err
    least, why = FLOORS[name]
    assert f"{name} 1.0: {why}" in said
    assert f"fix: pip install '{name}>={least}'" in said


@pytest.mark.parametrize(
    ("found", "passes"), [("2.10.0a0+vendor", True), ("2.13.0+cpu", True), ("2.9.9", False), ("2.10", True)]
)
def test_s24_how_versions_are_compared(found: str, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "version", lambda name: found if name == "torch" else "99")
    monkeypatch.setattr(floors, "check_floors", check_floors.__wrapped__)
    if passes:
        floors.check_floors()
    else:
        with pytest.raises(EnvironmentProblem, match="torch 2"):
            floors.check_floors()


@pytest.mark.parametrize("line", ["Version: unknown\n", "Version: None\n", ""])
def test_s24_a_release_that_nobody_knows(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train_beside("jinja2", line, tmp_path, monkeypatch)
    assert "fix: pip install --force-reinstall 'jinja2>=3.1.6'" in capfd.readouterr().err


def test_s24_no_package_fetches_code_behind_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that fetches native code from a hub, which bitsandbytes asks for at its import."""
    (tmp_path / "kernels.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    assert main(["--version"]) == 0
    assert importlib.util.find_spec("kernels") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("kernels")
    assert not (tmp_path / "executed").exists()
