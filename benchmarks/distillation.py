"""A student of few layers learns from the demo's writer: exact match on held-out requests, by distillation and by supervised tuning.

    python benchmarks/distillation.py runs/demo [--layers 4] [--epochs 6] [--rate 1e-3] [--record]

`luthier demo` made RUN, whose rows lie in RUN-data. The student begins as some of the layers of the merged writer, spread evenly from
the first to the last. All its weights are trained twice on the demo's rows, in the same order and for as long: once on the
writer's distributions (forward KL over the whole vocabulary), once on the written tokens. Each answers the demo's held-out requests.
What the runs made is left in RUN-distilled, and gone on with at another start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import config
from luthier.demo import flow, requests
from luthier.demo.judge import Share, figures, judge
from luthier.inference.opened import open_model
from luthier.inference.verified_export import export
from luthier.training import run
from records import Figure, device_of, record

ENOUGH = 80
"""Percent of the teacher's exact match."""


def student(merged: Path, folder: Path, layers: int) -> None:
    """Some of a model's layers, as a model."""
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    decoder = whole.get_decoder()
    last = len(decoder.layers) - 1
    kept = [decoder.layers[round(number * last / (layers - 1))] for number in range(layers)]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    decoder.layers = torch.nn.ModuleList(kept)
    whole.config.num_hidden_layers = layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = whole.config.layer_types[:layers]
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(merged).save_pretrained(folder)


def trained(model: Path, data: Path, folder: Path, objective: str, given: argparse.Namespace) -> Path:
    """A run of the student to its end."""
    keys = [f"model={model}", "dtype=float32", f"data.train={data / 'train.jsonl'}", "tuning=full", f"objective={objective}",
            f"num_train_epochs={given.epochs}", f"learning_rate={given.rate}", "global_batch_size=8", "save_steps=null",
            "max_tokens_per_micro_batch=1024", f"output_dir={folder}"]  # fmt: skip
    return run.execute(config.load(None, keys), resume=(folder / "manifest.json").is_file())


def answered(model: Path) -> dict[str, Share]:
    """Exact match on each of the demo's sets of held-out requests."""
    opened, found = open_model(str(model)), {}
    for name, pairs in requests.held_out_sets().items():
        texts = flow.answer(opened, [pair.request for pair in pairs])
        found[name] = figures([judge(pair.yaml, text) for pair, text in zip(pairs, texts, strict=True)]).exact
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    folder = given.run.with_name(f"{given.run.name}-distilled")
    merged, small = folder / "writer", folder / f"student-{given.layers}"
    if not merged.is_dir():
        folder.mkdir(exist_ok=True)
        export(str(given.run), "merged", merged, unproven=True)
    if not small.is_dir():
        student(merged, small, given.layers)
    data, objectives = flow.data_folder(given.run), {"distilled": f"{{kind: distill, teacher: {merged}}}", "supervised": "sft"}
    runs = {name: trained(small, data, folder / f"{name}-{given.layers}", key, given) for name, key in objectives.items()}
    results = []
    found = {"writer": answered(given.run), **{name: answered(one) for name, one in runs.items()}}
    for model, sets in found.items():
        for name, share in sets.items():
            interval = f"95 % interval [{100 * share.low:.0f}, {100 * share.high:.0f}]"
            print(f"{model}, {name}: {100 * share.value:.0f} % exact ({interval})")
            what = model if model == "writer" else f"{model} student of {given.layers} layers"
            results.append(Figure(f"demo's requests with {name}, {what}, exact ({interval})", round(100 * share.value), "%"))
    whole = {name: share.value for name, share in found["writer"].items()}
    met = all(whole[name] > 0 and 100 * share.value >= ENOUGH * whole[name] for name, share in found["distilled"].items())
    print(f"at least {ENOUGH} % of the writer's exact match by distillation: {'yes' if met else 'no'}")
    if given.record:
        record(
            "distillation",
            results,
            command=f"python benchmarks/distillation.py runs/demo --layers {given.layers} --epochs {given.epochs:g} "
            f"--rate {given.rate:g}",
            device=device_of(runs["distilled"]),
        )


if __name__ == "__main__":
    main()
