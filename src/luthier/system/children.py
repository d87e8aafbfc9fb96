"""Processes that work for this one: whether one is stopped, and how long it may take to answer."""

from __future__ import annotations

import math
import subprocess
import threading
from pathlib import Path

TICK_S = 0.25


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, a debugger) and not let go on; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state in (b"T", b"t")


class Patience:
    """Kills a child that has not answered in time; use as a context around asking it.

    Time is counted in ticks, so that it stands still while this process does (ctrl-Z, a laptop that sleeps).
    """

    def __init__(self, child: subprocess.Popen[str], limit_s: float) -> None:
        self._child, self._ticks = child, math.ceil(limit_s / TICK_S)
        self._answered = threading.Event()
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self.is_over = False
        """the child was killed"""
        self.was_stopped = False
        """and somebody had stopped it"""

    def __enter__(self) -> Patience:
        self._watch.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._answered.set()
        self._watch.join()

    def _wait(self) -> None:
        if any(self._answered.wait(TICK_S) for _ in range(self._ticks)):
            return
        self.was_stopped = is_stopped(self._child.pid)
        self.is_over = True
        self._child.kill()
