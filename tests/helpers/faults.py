"""Commands that a fault of the disk or a signal hits at a chosen file operation (faults.c), and what became of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.helpers.processes import ENVIRONMENT, ROOT

SOURCE = Path(__file__).with_name("faults.c")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
_HEAD = struct.Struct("<qqiiq")
_PATH_BYTES, _LOG_BYTES = 4096, 1 << 20


class What(IntEnum):
    """What happens at the operation; as in faults.c."""

    NOTHING = 0
    KILL = 1
    KILL_IN_THE_MIDDLE = 2
    FAIL_ONCE = 3
    FAIL_FROM_HERE = 4
    SIGNAL = 5
    SIGNAL_TWICE = 6


@dataclass(frozen=True)
class Plan:
    """What meets a command, where."""

    what: What = What.NOTHING
    at: int = 0
    """the operation, from 1"""
    number: int = 0
    """an errno, or a signal"""


NOTHING = Plan()


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    said: str
    operations: list[tuple[str, str]]
    """(name, path), of all file operations below the folders that were watched"""


class Commands:
    """Starts commands; see commands_worker.py."""

    def __init__(self, folder: Path) -> None:
        library = folder / "faults.so"
        assert COMPILER is not None
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.commands_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, "LD_PRELOAD": str(library)},
            cwd=ROOT,
        )

    def start(
        self,
        arguments: Sequence[object],
        plan: Plan = NOTHING,
        *,
        under: Sequence[Path] = (),
        room_bytes: int | None = None,
        **variables: str,
    ) -> int:
        """The id of the new process.

        Args:
            under: the folders (two at most) whose operations count.
            room_bytes: of address space, beyond what a process has that has everything imported.
        """
        file = self._folder / "plan"
        folders = b"".join(str(one).encode().ljust(_PATH_BYTES, b"\0") for one in (*under, "", "")[:2])
        file.write_bytes(_HEAD.pack(0, plan.at, plan.what, plan.number, 0) + folders + bytes(_LOG_BYTES))
        order = {
            "arguments": list(map(str, arguments)),
            "said": str(self._folder / "said"),
            "plan": str(file),
            "variables": variables,
            "folder": str(self._folder),
            "room_bytes": room_bytes,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._number()

    @staticmethod
    def wait_until_stopped(pid: int) -> None:
        """Until SIGSTOP has reached the process."""
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.005)

    def ended(self) -> Ended:
        """Waits for the command that was started last."""
        code = self._number()
        content = (self._folder / "plan").read_bytes()
        logged = _HEAD.unpack_from(content)[4]
        lines = content[_HEAD.size + 2 * _PATH_BYTES :][:logged].decode().splitlines()
        operations = [(name, path) for name, _, path in (line.partition(" ") for line in lines)]
        return Ended(code, self.said(), operations)

    def said(self) -> str:
        """What the command has printed so far."""
        return (self._folder / "said").read_text(errors="replace")

    def run(self, *arguments: object, plan: Plan = NOTHING, **how: Any) -> Ended:
        """Starts it, as `start` does, and waits for its end."""
        self.start(arguments, plan, **how)
        return self.ended()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())
