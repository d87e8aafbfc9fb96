"""One process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.component import ComponentConfig
from luthier.engines._replicas import Replica
from luthier.errors import EnvironmentProblem
from luthier.system.launch import launch

if TYPE_CHECKING:
    import torch

__all__ = ["Single"]


class Single(Replica):
    """One process, which holds everything."""

    class Config(ComponentConfig):
        kind: Literal["single"] = "single"

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        if (started := launch().processes) != 1:  # each would train alone, in one folder
            raise EnvironmentProblem("distributed: single", f"{started} processes", "one process", "distributed=auto")

    @classmethod
    def serves(cls, processes: int) -> bool:
        return processes == 1
