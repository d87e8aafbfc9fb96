"""Where luthier keeps what it can make again: converted models, encoded data, proofs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$LUTHIER_CACHE`, or `luthier` in the user's cache folder. Private to the user (mode 0700)."""
    chosen = os.environ.get("LUTHIER_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "luthier"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base


def decline_telemetry() -> None:
    """Tells trackers, before they are imported, to send nothing home about their use; what a user has set stays.

    What they send on purpose (metrics to the server that the user has chosen) is not touched.
    """
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
