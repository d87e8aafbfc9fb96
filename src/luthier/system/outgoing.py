"""What libraries would send or fetch by themselves."""

from __future__ import annotations

import os
import sys
from typing import Any

DECLINED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "USE_HUB_KERNELS": "NO",
}
"""Variables by which libraries are told to send nothing home about their use, and to fetch no code from a hub for a model whose
settings would have it."""


def decline() -> None:
    """Tells them before they are imported; what a user has set stays.

    What trackers send on purpose (metrics to the server that the user has chosen) is not touched.
    """
    for name, value in DECLINED.items():
        os.environ.setdefault(name, value)


def block_kernels() -> None:
    """In a program of luthier's own nobody can import the package that fetches code from a hub, as bitsandbytes would at its import,
    unless the user has set USE_HUB_KERNELS to anything else.
    """
    if os.environ.get("USE_HUB_KERNELS") == DECLINED["USE_HUB_KERNELS"]:
        nothing: Any = None  # as the import system notes that there is none
        sys.modules.setdefault("kernels", nothing)
