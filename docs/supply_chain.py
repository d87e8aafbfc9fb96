"""What luthier is installed with, to be held against what arrives: `make lock` writes requirements.lock (each package with the hash of its
file, for pip's --require-hashes) and sbom.cdx.json (the same as a bill of materials, in CycloneDX's form).

Both are of one machine: files differ between systems, versions of Python and builds of torch. Reads what pip reports of
constraints.txt (`pip install --dry-run --report -`) from standard input.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK, BILL = ROOT / "requirements.lock", ROOT / "sbom.cdx.json"


def main() -> None:
    report = json.load(sys.stdin)
    packages = sorted(report["install"], key=lambda package: _name(package))
    where = f"Python {report['environment']['python_version']} on {report['environment']['sys_platform']} "
    where += report["environment"]["platform_machine"]
    head = f"# Of {where}; made by `make lock`. torch with +cpu is PyTorch's own build for CPUs."
    lines = [f"{_name(one)}=={one['metadata']['version']} --hash=sha256:{_hash(one)}" for one in packages]
    LOCK.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    parts = ",\n  ".join(json.dumps(_component(one)) for one in packages)
    about = {"component": {"type": "application", "name": "luthier", "version": _own_version()}}
    text = f'{{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,\n "metadata": {json.dumps(about)},\n'
    BILL.write_text(f'{text} "components": [\n  {parts}\n ]}}\n', encoding="utf-8")


def _name(package: dict[str, Any]) -> str:
    return re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()


def _hash(package: dict[str, Any]) -> str:
    return str(package["download_info"]["archive_info"]["hashes"]["sha256"])


def _component(package: dict[str, Any]) -> dict[str, Any]:
    about, name = package["metadata"], _name(package)
    version = about["version"]
    found: dict[str, Any] = {"type": "library", "name": name, "version": version}
    found |= {
        "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        "hashes": [{"alg": "SHA-256", "content": _hash(package)}],
    }
    if expression := about.get("license_expression"):
        found["licenses"] = [{"expression": expression}]
    elif words := _license(about):
        found["licenses"] = [{"license": {"name": words}}]
    return found


def _license(about: dict[str, Any]) -> str:
    """In the package's own words, where they are few."""
    classes = [line.rpartition(" :: ")[2] for line in about.get("classifier", ()) if line.startswith("License :: ")]
    words = str(about.get("license") or "").strip()
    return words if words and len(words) < 60 and "\n" not in words else ", ".join(classes)


def _own_version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


if __name__ == "__main__":
    main()
