"""How this process was started: alone, or as one of several by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass

from luthier.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Launch:
    """What torchrun tells each process."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    """on this machine"""
    several: bool = False
    """whether torchrun started it, be it alone"""


def launch() -> Launch:
    """From RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        UserError: they are not what torchrun sets: some are missing, or make no sense.
    """
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    if not found.keys() & {"RANK", "WORLD_SIZE"}:
        return Launch()
    told = ", ".join(f"{name}={value}" for name, value in found.items())
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in found]
    numbers = {name: int(value) for name, value in found.items() if value.isascii() and value.isdigit()}
    rank, processes = numbers.get("RANK", -1), numbers.get("WORLD_SIZE", 0)
    if missing or numbers.keys() != found.keys() or not 0 <= rank < processes:
        raise UserError(
            "environment",
            f"{told}{f', but no {missing[0]}' if missing else ''}",
            "both a rank and the number of processes, as torchrun sets them, or neither",
            f"unset {' '.join(found)}, or start with torchrun",
        )
    return Launch(rank, processes, numbers.get("LOCAL_RANK", 0), several=True)
