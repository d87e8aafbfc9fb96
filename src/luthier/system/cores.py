"""The cores that this process computes on: how many, how its threads wait for each other, and whether others want them too.

OpenMP's threads spin where they wait, for milliseconds, before they sleep. Where another process holds a core, they spin
on the core that the thread they wait for could use. A short spin costs little on a quiet machine and nearly doubles the
speed on a shared one (`benchmarks/shared_machine.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PRESSURE = (CGROUP / "cpu.pressure", Path("/proc/pressure/cpu"))
"""Where Linux says for how long tasks waited for a core: in this container, or on the whole machine."""
SPINS = "2000"
"""Looks at a barrier before a thread sleeps, tens of microseconds; libgomp, which torch computes with on Linux, has 300,000."""
MOST_CORES = 4
"""Measured on two only. More threads take longer to wake, and one busy process takes less of many cores."""
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def cores() -> int:
    """CPU cores that this process may use: its affinity, bounded by the container's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return min(usable, max(1, int(quota) // int(period))) if quota.isdigit() else usable


def spin_briefly() -> None:
    """Threads of this process and its children sleep soon where they wait: sets GOMP_SPINCOUNT in the environment.

    Only an OpenMP that is not loaded yet reads it, so this comes before torch is imported; what the user set stays. Counted are
    the cores that torch starts threads for, which a container's quota does not change.
    """
    few = len(os.sched_getaffinity(0)) <= MOST_CORES if sys.platform == "linux" else False
    if few and "torch" not in sys.modules and not any(name in os.environ for name in SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def waiting(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait, for the record: `GOMP_SPINCOUNT=2000`."""
    return ", ".join(f"{name}={environment[name]}" for name in SETTINGS if name in environment) or "as OpenMP does"


def pressure_s() -> float | None:
    """Seconds, since some moment before, in which a task waited for a core; None where the system does not say."""
    for path in PRESSURE:
        try:
            some = path.read_text().partition("\n")[0]
            return int(some.rpartition("total=")[2]) / 1e6
        except (OSError, ValueError):
            continue
    return None
