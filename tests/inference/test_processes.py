"""Scores are the same whatever the number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.inference import scoring
from luthier.inference.opened import open_model
from tests.inference.test_opened import samples

ONE_PROCESS = """
import json, sys
import torch.distributed as dist
from luthier.inference import scoring
from luthier.inference.opened import open_model
from tests.inference.test_opened import samples

run, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
policy = open_model(run).policy()
found = scoring.score_rows(policy, samples(), layout="padded", max_tokens=64, processes=2, rank=rank)
print(json.dumps([found.nll.tolist(), found.correct.tolist(), found.tokens.tolist()]))
dist.destroy_process_group()
"""


@pytest.mark.prove
@pytest.mark.processes
def test_two_processes_give_the_rows_of_one(run: Path, tmp_path: Path) -> None:
    alone = scoring.score_rows(open_model(str(run)).policy(), samples(), layout="padded", max_tokens=64)
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_PROCESS, str(run), str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ends
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ends)
    assert first == second
    assert first[0] == pytest.approx(alone.nll.tolist(), abs=1e-4)
    assert first[1:] == [alone.correct.tolist(), alone.tokens.tolist()]
