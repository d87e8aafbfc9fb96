"""One of two processes: `torchrun ... -m tests.helpers.router_worker FOLDER RESULT` trains
as tests/objectives/test_router_balance.py does."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from luthier.data.steps.layout import micro_batches
from luthier.engines import make_engine
from luthier.engines.ddp import DDP
from luthier.system.devices import device
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import train_step
from tests.objectives.test_router_balance import OVER, job_of, together
from tests.objectives.test_weighted import gradient

MAX_TOKENS = 118


def main(folder: Path, result: Path) -> None:
    engine = make_engine("auto", device())
    assert (type(engine), engine.processes) == (DDP, 2)
    found = {}
    for over in OVER:
        found[over] = gradient(job_of(folder / over, together(over), MAX_TOKENS, engine=engine))
        job = job_of(folder / f"{over}-step", together(over), MAX_TOKENS, engine=engine)
        train_step(job, job.record, LearningCheck(job.policy, job.waiting))
        job.record.recorder.sync()
    samples, places = list(job.samples), range(len(job.samples))
    laid_out = [
        batch
        for rank in range(2)
        for batch in micro_batches(
            samples, places, layout="flat", max_tokens=MAX_TOKENS, step=0, processes=2, rank=rank
        )
    ]
    if engine.main:
        empty = sum(not batch.row_ids for batch in laid_out)
        save_file({**found, "empty_micro_batches": torch.tensor(empty)}, result)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
