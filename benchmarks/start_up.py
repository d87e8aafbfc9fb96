"""How long a person waits for help: every `luthier ... --help`, and `import luthier`, the median of several, in fresh processes.

    python benchmarks/start_up.py [--times 5] [--record]

Wall-clock time, and beside it the time on the processor, which a busy machine changes less. `--record` writes the slowest to
benchmarks/results/, of which `make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from luthier.cli import command_names
from luthier.system.machine import cores
from records import Figure, record

LIMIT_S = 0.3


def seconds(command: list[str]) -> tuple[float, float]:
    """(wall-clock, processor) seconds of one fresh process."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    commands = {"import luthier": ["-c", "import luthier"]}
    for name in ["", "config", "template", *command_names()]:
        commands[" ".join(["luthier", *name.split(), "--help"])] = ["-m", "luthier", *name.split(), "--help"]
    medians = {}
    for name, command in commands.items():
        wall, busy = zip(*(seconds(command) for _ in range(given.times)), strict=True)
        medians[name] = statistics.median(wall)
        print(f"{medians[name]:.2f} s, {statistics.median(busy):.2f} s of processor time: {name}")
    slowest = max(medians, key=lambda name: medians[name])
    print(f"slowest: {slowest}, {medians[slowest]:.2f} s (limit {LIMIT_S} s)")
    if given.record:
        claim = f"the slowest of {len(medians) - 1} `--help` (median of {given.times}): `{slowest}`"
        record(
            "start_up",
            [Figure(claim, round(medians[slowest], 2), "s")],
            command="python benchmarks/start_up.py",
            device=f"{cores()} CPU cores",
        )


if __name__ == "__main__":
    main()
