"""Fine-tune open language models on your own data.

`run = luthier.train(model="org/name", data=[...])`, then `run.chat("...")`, `run.metrics`, and `run` alone for a curve.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.models import architectures
from luthier.system import cores, outgoing

if TYPE_CHECKING:
    from luthier.api import Run, train
    from luthier.errors import EnvironmentProblem, LuthierError, UserError

__version__ = "0.1.0"
__all__ = ["EnvironmentProblem", "LuthierError", "Run", "UserError", "__version__", "train"]

_HOMES = {
    "EnvironmentProblem": "luthier.errors",
    "LuthierError": "luthier.errors",
    "Run": "luthier.api",
    "UserError": "luthier.errors",
    "train": "luthier.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


architectures.watch()
cores.spin_briefly()
outgoing.decline()
