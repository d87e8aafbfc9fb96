"""One of two processes: `torchrun ... -m tests.helpers.ddp_worker FOLDER MAX_TOKENS RESULT` trains
as tests/training/test_invariance.py does."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from luthier.data.steps.layout import micro_batches
from luthier.engines import make_engine
from luthier.engines.ddp import DDP
from luthier.system.devices import device
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.training.test_invariance import LENGTHS, OVERRIDES, first_gradient, trained


def main(folder: Path, max_tokens: int, result: Path) -> None:
    engine = make_engine("auto", device())
    assert (type(engine), engine.processes) == (DDP, 2)

    def job(name: str) -> object:
        config = make_config(folder / name, *OVERRIDES)
        return make_job(config, make_samples(LENGTHS), make_policy(config), max_tokens=max_tokens, engine=engine)

    gradient = first_gradient(job("gradient"))
    again = job("weights")
    empty = 0
    for step in range(5):
        indices = again.steps.indices(step)
        for rank in range(2):
            batches = micro_batches(
                [again.samples[i] for i in indices],
                indices,
                layout="flat",
                max_tokens=max_tokens,
                step=step,
                processes=2,
                rank=rank,
            )
            empty += sum(not batch.row_ids for batch in batches)
    weights = trained(again)
    if engine.main:
        save_file({"gradient": gradient, "weights": weights, "empty_micro_batches": torch.tensor(empty)}, result)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
