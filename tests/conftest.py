"""Every session of tests has a cache of its own, and one thread a process: two workers share two cores."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.properties import register_profiles

if TYPE_CHECKING:
    from tests.helpers.killing import Worker

CACHE = Path(tempfile.mkdtemp(prefix="luthier-tests-"))

# Set before anything imports torch or the hub's client, so that subprocesses of tests get the same.
os.environ["LUTHIER_CACHE"] = str(CACHE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

register_profiles()


def pytest_collection_finish() -> None:
    """What was imported stays: a collection of garbage that looks at all of it takes half a second, and merging asks for many."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", default="1/1", help="one of N equal shares of the tests, I/N, by their names: --share 3/8"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, shares = map(int, config.getoption("--share").split("/"))
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % shares == share % shares]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Starts runs in processes of their own. Its imports take seconds, so there is one for all tests."""
    from tests.helpers.killing import Worker

    started = Worker()
    yield started
    started.close()


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run that the worker's tests kill and resume."""
    from tests.helpers.killing import write_config

    return write_config(tmp_path_factory.mktemp("small-run"))
