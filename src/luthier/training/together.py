"""What one process does for all: where it fails, the others end too and do not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.engines import Engine
from luthier.errors import EnvironmentProblem, LuthierError


def by_main(engine: Engine, work: Callable[[], Any]) -> Any:
    """What `work` gives on the main process, plain JSON, on every process.

    Raises:
        LuthierError: as `work`, on the main process; on the others, that it failed.
    """
    found: Any = None
    wrong: LuthierError | None = None
    if engine.main:
        try:
            found = work()
        except LuthierError as error:
            wrong = error
    found, failed = engine.from_main([found, wrong is not None])
    if wrong is not None:
        raise wrong
    if failed:
        raise EnvironmentProblem(
            "another process", "it could not begin the run, or go on with it", "", "see its message"
        )
    return found
