"""What this process computes on: its device, that device's memory and name, and whether its algorithms give the same bits."""

from __future__ import annotations

import os
import platform
import resource
import sys
from typing import Any

import torch

from luthier.system.launch import launch


def device() -> torch.device:
    """This process's device: its CUDA card, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        index = launch().local_rank
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def is_main_process() -> bool:
    return launch().rank == 0


def deterministic(on: bool) -> None:
    """Only algorithms that give the same bits each time; set before the first CUDA call."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)


def memory_bytes(where: torch.device) -> int:
    """Peak memory of this process: allocated on the card, resident on a CPU."""
    if where.type == "cuda":
        return int(torch.cuda.max_memory_allocated(where))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def hardware(where: torch.device) -> dict[str, Any]:
    """What the manifest says of the machine."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    return {"device": where.type, "name": name, "threads": torch.get_num_threads(), "platform": platform.platform()}
