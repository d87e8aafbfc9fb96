"""Reads results in another process, which has seen nothing of the training. Forked from one that only imported: imports take
seconds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

LOGITS = "again.safetensors"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["peft", "luthier.inference.opened", "luthier.models.load"])


def read_elsewhere(folders: Sequence[Path], ids: list[list[int]]) -> None:
    """Writes `logits` of `ids` by each RUN or model folder into its LOGITS."""
    other = _CONTEXT.Process(target=_read, args=(folders, ids))
    other.start()
    other.join(300)
    assert other.exitcode == 0


def _read(folders: Sequence[Path], ids: list[list[int]]) -> None:
    import torch
    from safetensors.torch import save_file

    from luthier.inference.opened import open_model

    for folder in folders:
        with torch.no_grad():
            found = open_model(str(folder)).model(torch.tensor(ids)).logits
        save_file({"logits": found.float()}, folder / LOGITS)
