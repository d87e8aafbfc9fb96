"""Processes that run this checkout's code, whatever is installed beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def torchrun_command(*module_and_arguments: str, processes: int = 2) -> list[str]:
    """`torchrun -m ...` on this machine, on a port that is free."""
    endpoint = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", *endpoint, "-m", *module_and_arguments]


def torchrun(*module_and_arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    return subprocess.run(
        torchrun_command(*module_and_arguments, processes=processes),
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
