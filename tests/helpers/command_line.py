"""`luthier ...`, as it is typed, in this process."""

from __future__ import annotations

import torch

from luthier.cli import main


def luthier(*arguments: object) -> int:
    """The exit status; what a run with `deterministic` leaves switched on in torch is switched off."""
    try:
        return main(list(map(str, arguments)))
    finally:
        torch.use_deterministic_algorithms(False)
