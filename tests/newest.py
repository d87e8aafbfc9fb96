"""`make newest`: what would have to change for the newest release of everything that luthier stands on.

Installs the dependencies of pyproject.toml without their upper bounds, says which are newer than the ranges admit, and runs
first the probes of what is borrowed (tests/test_borrowed.py) and then the suite. HOLD names packages that stay in their
range: `HOLD=torch make newest` where the newest torch is a large download.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
UPPER = ("<", "<=", "==", "~=")


def open_ended(requirement: Requirement) -> str:
    """The requirement without its upper bounds."""
    lower = SpecifierSet(",".join(str(one) for one in requirement.specifier if one.operator not in UPPER))
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{lower}"


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = [Requirement(line) for line in project["dependencies"]]
    extras = project["optional-dependencies"]
    more = [Requirement(line) for name in ("tracking", "llama-cpp", "dev") for line in extras[name]]
    held = os.environ.get("HOLD", "").split(",")
    wanted = [str(one) if one.name in held else open_ended(one) for one in (*given, *more) if one.name != "luthier"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", *wanted], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    newer = [
        f"{one.name} {version(one.name)} ({one.specifier})" for one in given if version(one.name) not in one.specifier
    ]
    print("beyond the ranges of pyproject.toml: " + (", ".join(newer) or "nothing"), flush=True)
    suite = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    probes = subprocess.run([*suite, "tests/test_borrowed.py"], cwd=ROOT, check=False).returncode
    tests = subprocess.run([*suite, "-m", "not prove"], cwd=ROOT, check=False).returncode
    if newer and not probes and not tests:
        print("the suite passes: the ranges can be widened")
    return probes or tests


if __name__ == "__main__":
    sys.exit(main())
