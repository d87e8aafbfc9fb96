"""A finished report of `luthier data`, kept in the cache and found again before torch or transformers are imported.

Its name is a hash of all that decides it, so what has changed is made anew, and nobody has to remember a version number.
The file is a line with the hash of the rest, and the report as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from luthier import component
from luthier.component import ComponentConfig
from luthier.config import RunConfig
from luthier.data.dataset import cache
from luthier.data.files import is_of_hub
from luthier.data.recognise import Part, parts_of
from luthier.errors import UserError
from luthier.inspecting.data.report import DataReport
from luthier.inspecting.data.shown_rows import Wanted
from luthier.system import machine
from luthier.system.files import sha256, write_file
from luthier.system.paths import cache_dir

PACKAGES = (*machine.PACKAGES, "jinja2", "numpy", "py3langid", "sentencepiece", "tiktoken")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of the files of a model's folder that no report depends on."""
DECIDING = ("CUDA_", "HIP_", "ROCR_", "NVIDIA_", "OMP_", "MKL_", "ONEDNN_", "TORCH_", "PYTORCH_", "LOCAL_RANK")
"""Beginnings of environment variables by which torch chooses its device and its speed, and so the layout of batches."""
PACKAGE = Path(component.__file__).parent


class KeptReport:
    """The place of one report in the cache, and of those that show other rows of the same data. They have none, so are never
    found, where someone else's code or a hub's data set has a say: what those depend on is not known here.

    Args:
        wanted, every_view: which rows are shown.
        folder: the model's, where the tokenizer lies.
        environment: the process's variables; those of DECIDING count.

    Raises:
        UserError: a data file is not there or cannot be read.
    """

    def __init__(
        self, config: RunConfig, wanted: Wanted, every_view: bool, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._config, self._wanted = config, wanted
        self._key: dict[str, object] | None = None
        self._parts: list[Part] = []
        if _has_foreign_parts(config):
            return
        self._parts = parts_of(config, component.make("objectives", config.objective).takes)
        if any(part.source.path is None for part in self._parts):
            return
        self._key = {
            "config": config.resolved_yaml(),
            "every_view": every_view,
            "data": [_data_file(part) for part in self._parts],
            "model": _contents(folder, [*folder.glob("*"), *folder.glob("additional_chat_templates/*")]),
            "template": _template_file(config),
            "code": _contents(PACKAGE, [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja")]),
            "versions": [platform.python_version(), *_versions()],
            "machine": machine.devices(),
            "environment": sorted(pair for pair in environment.items() if pair[0].startswith(DECIDING)),
        }

    def _path(self, wanted: Wanted) -> Path:
        text = json.dumps({**(self._key or {}), "shown": asdict(wanted)}, sort_keys=True)
        return cache_dir() / "reports" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def find(self) -> DataReport | None:
        """The report; None where it is not there, or a byte of it is not what was written."""
        if self._key is None:
            return None
        path = self._path(self._wanted)
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
            if digest.decode() != hashlib.sha256(body).hexdigest():
                return None
            report = _REPORT.validate_python({**json.loads(body), "config": self._config})
        except (OSError, ValueError, TypeError, ValidationError):
            return None
        os.utime(path)
        return report

    def keep(self, reports: Sequence[tuple[Wanted, DataReport]]) -> None:
        """Writes them, where the data are still those that were looked at, and removes reports that nobody asked for lately.

        Raises:
            UserError: a data file has changed since.
        """
        if self._key is None:
            return
        for part in self._parts:
            part.source.check_unchanged()
        for wanted, report in reversed(reports):  # the one that was asked for is the last, and is kept in any case
            path, body = self._path(wanted), json.dumps(_values(report)).encode()
            with suppress(OSError, UserError):  # no room, or something else in its place: made anew the next time
                path.parent.mkdir(exist_ok=True)
                write_file(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                cache.remove_unused(keep=path)


_REPORT = TypeAdapter(DataReport)


def _values(report: DataReport) -> dict[str, object]:
    """Its fields as plain values; the configuration is read anew each time."""
    out = {item.name: getattr(report, item.name) for item in fields(report) if item.name != "config"}
    return {**out, "batches": asdict(report.batches), "rows": [asdict(row) for row in report.rows]}


def _has_foreign_parts(config: RunConfig) -> bool:
    held_out = config.data.eval if isinstance(config.data.eval, tuple) else ()
    files = (*config.data.train, *held_out)
    kinds = [file.format.kind for file in files if isinstance(file.format, ComponentConfig)]
    return any(":" in kind for kind in (config.objective.kind, *kinds)) or any(is_of_hub(file) for file in files)


def _data_file(part: Part) -> list[object]:
    """Name, content, choice of rows, and how they are read."""
    source = part.source
    return [
        part.purpose,
        part.weight,
        source.name,
        source.note,
        source.fingerprint(),
        source.file.model_dump(mode="json"),
    ]


def _template_file(config: RunConfig) -> str | None:
    path = Path(config.data.chat_template)
    return sha256(path) if path.is_file() else None


def _contents(folder: Path, files: list[Path]) -> list[str]:
    """The hash of each file by its name; weights decide nothing here."""
    return [
        f"{path.relative_to(folder)} {sha256(path)}"
        for path in sorted(files)
        if path.suffix not in WEIGHTS and path.is_file()
    ]


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
