"""Every session of tests has a cache of its own, and one thread a process: two workers share two cores."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests.helpers.properties import register_profiles

CACHE = Path(tempfile.mkdtemp(prefix="luthier-tests-"))

# Set before anything imports torch or the hub's client, so that subprocesses of tests get the same.
os.environ["LUTHIER_CACHE"] = str(CACHE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

register_profiles()


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
