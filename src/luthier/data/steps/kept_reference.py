"""What is kept of the policy at step 0: a number for each trained token of a data set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from luthier.data.dataset.samples import SampleSet
from luthier.types import MicroBatch


class KeptReference:
    """Log-probabilities of all trained tokens of a data set, sample after sample."""

    def __init__(self, samples: SampleSet, logps: npt.NDArray[np.float32]) -> None:
        self._logps = logps
        self._starts = np.concatenate([[0], np.cumsum(samples.trained)])

    def put_into(self, batch: MicroBatch) -> None:
        """What is kept of a micro-batch's documents becomes its `reference`."""
        import torch

        parts = [self._logps[self._starts[place] : self._starts[place + 1]] for place in batch.places]
        joined = np.concatenate(parts) if parts else np.empty(0, np.float32)
        batch.reference = torch.from_numpy(joined.astype(np.float32))
