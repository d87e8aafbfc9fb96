"""What is kept of another model (the policy at step 0, a teacher): numbers for each trained token of a data set."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from luthier.data.dataset.samples import SampleSet
from luthier.types import MicroBatch


class KeptReference:
    """Numbers of all trained tokens of a data set, sample after sample: [tokens] or [tokens, numbers].

    Args:
        into: which part of a micro-batch they become.
    """

    def __init__(
        self, samples: SampleSet, numbers: npt.NDArray[np.float32], into: Literal["reference", "taught"] = "reference"
    ) -> None:
        self._numbers, self._into = numbers, into
        self._starts = np.concatenate([[0], np.cumsum(samples.trained)])

    def put_into(self, batch: MicroBatch) -> None:
        """What is kept of a micro-batch's documents becomes part of it."""
        import torch

        parts = [self._numbers[self._starts[place] : self._starts[place + 1]] for place in batch.places]
        joined = np.concatenate(parts) if parts else self._numbers[:0]
        setattr(batch, self._into, torch.from_numpy(joined.astype(np.float32)))
