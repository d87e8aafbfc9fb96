"""How an adapter begins at what its layers read: EVA (Paischer et al., 2024, arXiv:2410.07170), the same rank everywhere.

A is the main directions of a layer's inputs x [D], the eigenvectors of C = sum of x x^T with the largest eigenvalues. C is
[D, D] and is never formed. One pass over the inputs sums Y = C O for a fixed O [D, K], two matrix products a row, and
C ~ Y (O^T Y)^-1 Y^T (Tropp et al., 2017, arXiv:1706.05736), which is exact where C has at most K directions. Memory is K
vectors a layer, however many rows are read; nothing is decomposed before the last row.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from luthier.kernels.dropout import random_bits
from luthier.kernels.lora import ADAPTER, lora_layers
from luthier.tuning import Start

ROWS = 64
"""How many rows are looked at."""
DIRECTIONS_PER_RANK = 4
"""K / R."""
LEAST = 1e-12
"""An eigenvalue below this share of the largest is rounding, and no direction."""
QUIET_S = 10.0
"""Between two lines for the person who waits."""


class Sketch:
    """The main directions of vectors that are seen one after the other, in float64.

    Args:
        features: D of the vectors.
        keep: K, how many directions are held.
    """

    def __init__(self, features: int, keep: int, device: torch.device) -> None:
        signs = random_bits(torch.Size((features, min(keep, features))), device, "directions", features) & 1
        self.test = torch.linalg.qr(2.0 * signs.double() - 1.0).Q
        self.sums = torch.zeros_like(self.test)

    def add(self, vectors: torch.Tensor) -> None:
        """Of any shape that ends in D."""
        seen = vectors.reshape(-1, vectors.shape[-1]).to(self.test)
        self.sums.addmm_(seen.T, seen @ self.test)

    def main_directions(self) -> torch.Tensor:
        """[n, D], n <= K: unit vectors, the one with the largest eigenvalue first; none where all vectors are zero."""
        values, vectors = torch.linalg.eigh(self.test.T @ self.sums)
        real = values > LEAST * values[-1].clamp(min=0)
        half = self.sums @ (vectors[:, real] / values[real].sqrt())  # half half^T ~ C
        left, sizes, _ = torch.linalg.svd(half, full_matrices=False)
        found: torch.Tensor = left.T[sizes > LEAST**0.5 * sizes[:1]]
        return found


@torch.no_grad()
def begin_at_inputs(adapted: Any, start: Start) -> None:
    """A begins at the main directions of a layer's inputs over the first rows; B stays zero. Directions beyond those that
    the rows have stay as they were."""
    if start.restored:
        return
    layers = dict(lora_layers(adapted))
    for name, sketch in _sketches(adapted, layers, start).items():
        weight, found = layers[name].lora_A[ADAPTER].weight, sketch.main_directions()
        count = min(len(weight), len(found))
        weight.data[:count] = found[:count].to(weight)


def _sketches(adapted: Any, layers: dict[str, Any], start: Start) -> dict[str, Sketch]:
    """Of each layer's inputs; layers that read the very same tensor, such as those of queries and keys, share one."""
    core, rows, sketches = adapted.get_base_model(), start.rows(ROWS), dict[str, Sketch]()
    keep = DIRECTIONS_PER_RANK * max(layer.r[ADAPTER] for layer in layers.values())
    last: tuple[torch.Tensor | None, str] = (None, "")

    def look(name: str, inputs: torch.Tensor) -> None:
        nonlocal last
        if inputs is last[0] and sketches.get(name, sketches[last[1]]) is sketches[last[1]]:
            sketches[name] = sketches[last[1]]
            return
        last = (inputs, name)
        # Apple's GPUs have no float64.
        where = torch.device("cpu") if inputs.device.type == "mps" else inputs.device
        if name not in sketches:
            sketches[name] = Sketch(inputs.shape[-1], keep, where)
        sketches[name].add(inputs)

    hooks = [
        layer.register_forward_pre_hook(lambda _layer, inputs, name=name: look(name, inputs[0]))
        for name, layer in layers.items()
    ]
    head = core.get_output_embeddings()
    few = {} if head is None or any(layer is head for layer in layers.values()) else {"logits_to_keep": 1}
    spoke = time.monotonic()
    try:
        with adapted.disable_adapter():
            for number, row in enumerate(rows, start=1):
                adapted(input_ids=row[None].to(core.device), use_cache=False, **few)
                if time.monotonic() - spoke > QUIET_S and number < len(rows):
                    spoke = time.monotonic()
                    start.say(f"the adapter begins at what the layers read: {number} of {len(rows)} rows")
    finally:
        for hook in hooks:
            hook.remove()
    return sketches
