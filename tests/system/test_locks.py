"""A lock ends with the process that took it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from luthier.system.locks import held
from tests.helpers.processes import ENVIRONMENT

HOLDS_AND_IS_KILLED = """
import os, signal, sys, time
from pathlib import Path
from luthier.system.locks import held
with held(Path(sys.argv[1]), wait=False):
    parent = os.getpid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.kill(parent, signal.SIGKILL)
    time.sleep(60)
"""


def test_a_child_that_outlives_its_parent_does_not_hold_its_lock(tmp_path: Path) -> None:
    """One that encodes does so for a moment, and a run that was killed could not be started again at once."""
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS_AND_IS_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            assert holder.wait(timeout=60) == -signal.SIGKILL
            with held(path, wait=False):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
