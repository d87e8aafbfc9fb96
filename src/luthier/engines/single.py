"""One process."""

from __future__ import annotations

from luthier.engines._replicas import Replica

__all__ = ["Single"]


class Single(Replica):
    """One process, which holds everything."""

    @classmethod
    def serves(cls, processes: int) -> bool:
        return processes == 1
