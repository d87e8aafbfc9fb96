"""What DDP shares at its start: what is trained; and what a wrapped policy can be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier.engines import make_engine
from luthier.engines.ddp import DDP
from luthier.errors import EnvironmentProblem
from tests.helpers.processes import torchrun

pytestmark = pytest.mark.processes


def test_one_process_alone_is_told_how_several_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(EnvironmentProblem, match="distributed: ddp: one process was started") as error:
        make_engine(DDP.Config(), torch.device("cpu"))
    assert "torchrun --nproc-per-node 2 -m luthier train" in str(error.value)


@pytest.mark.prove
def test_only_what_is_trained_is_sent(tmp_path: Path) -> None:
    """A frozen base of 70 B is 140 GB that every process has read already; another base is refused on both."""
    done = torchrun("tests.helpers.wrap_worker", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["trained"] == second["trained"]
    assert first["sent"] == len(first["trained"])
    assert first["gradient"] == second["gradient"] > 0
    assert first["reference"]
    assert second["reference"]
    assert "different frozen weights" in first["refused"]
    assert "different frozen weights" in second["refused"]
