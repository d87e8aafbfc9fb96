"""Facts of the machine: what `doctor` and `init` say of it. Reads, changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from luthier.system.cores import CGROUP, cores

PACKAGES = (
    "luthier",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "pydantic",
    "safetensors",
)
MEMINFO = Path("/proc/meminfo")
NVIDIA = Path("/proc/driver/nvidia")
CARDS = ("nvidia*", "kfd", "dxg", "dri/*")
"""Names of accelerators in /dev: NVIDIA's, AMD's, those of Windows' Linux."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    """compute capability, as `9.0`"""


@dataclass(frozen=True)
class Machine:
    """What a run has to work with; sizes in bytes, as this process may use them (containers' limits included)."""

    system: str
    processor: str
    python: str
    cores: int
    memory_bytes: int | None
    available_bytes: int | None
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(folder: Path | None = None) -> Machine:
    """The machine as it is now; `folder` says on which disk free space is counted. Imports torch."""
    memory = _meminfo()
    total, available = memory.get("MemTotal"), memory.get("MemAvailable")
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is not None and (total is None or limit < total):
        total = limit
        free = limit - (used or 0)
        available = free if available is None else min(available, free)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        python=platform.python_version(),
        cores=cores(),
        memory_bytes=total,
        available_bytes=available,
        disk_free_bytes=shutil.disk_usage(_existing(folder or Path.cwd())).free,
        gpus=_gpus(),
    )


def versions() -> dict[str, str]:
    """Installed versions of what decides numbers; a package that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def untested() -> list[str]:
    """What is installed and outside the ranges that luthier was tested with, each with its range."""
    found = []
    for line in requires("luthier") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{requirement.name} is not installed ({requirement.specifier})")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            found.append(f"{requirement.name} {installed} ({requirement.specifier})")
    return found


def size(count_bytes: float) -> str:
    """`23.5 GiB`, `512 MiB`, `90 KiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count_bytes >= 2**power:
            return f"{count_bytes / 2**power:.1f} {unit}" if power == 30 else f"{count_bytes / 2**power:.0f} {unit}"
    return f"{count_bytes:.0f} B"


def devices() -> list[str]:
    """The processor and the cards with their drivers, as the system names them: asks no library, so it takes no time.

    What is told here changes when another device would be chosen to train on; the kinds of cards are told for NVIDIA's.
    """
    found = [platform.system(), platform.machine(), _processor()]
    found += sorted(path.name for pattern in CARDS for path in Path("/dev").glob(pattern))
    for path in [*sorted(NVIDIA.glob("gpus/*/information")), NVIDIA / "version"]:
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return found


def _meminfo() -> dict[str, int]:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return _sysconf_memory()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _sysconf_memory() -> dict[str, int]:
    """Where there is no /proc (macOS): the total only."""
    try:
        return {"MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    except (ValueError, OSError):
        return {}


def _cgroup_number(name: str) -> int | None:
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(Gpu(properties.name, total, free, f"{properties.major}.{properties.minor}"))
    return tuple(found)
