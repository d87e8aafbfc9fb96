"""Near duplicates: what `luthier data` finds among many rows, how fast and in how much memory, beside two libraries.

    python benchmarks/near_duplicates.py DATA_FOLDER [--rows 100000] [--libraries PYTHON] [--record]

DATA_FOLDER holds JSON files of rows with texts. Of their sentences rows are made, as different as sentences in another order
and number are; a tenth are copies of another row with some words changed, dropped or doubled. Each method looks for
pairs whose three-token runs have a Jaccard similarity of 0.7 or more, by 64 hashes in 16 bands, in a process of its own
that gets the same token ids (one a word or character). What counts as found are planted pairs of at least that similarity
that end in one group, and as wrong candidates that are not checked and lie below it.

`--libraries` is a Python with numpy, datasketch and rensa in it. `--record` writes the figures to benchmarks/results/, of which
`make docs` makes docs/claims.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NGRAM, BANDS, HASHES, SIMILAR = 3, 16, 64, 0.7
METHODS = ("luthier", "luthier with rensa's hashes", "datasketch", "rensa")


def sentences(folder: Path) -> list[list[str]]:
    """The distinct sentences of all texts in the JSON files, in words, or in characters where they have no spaces."""
    found: dict[str, None] = {}
    for file in sorted(folder.glob("*.json")):
        for text in _texts(json.loads(file.read_text(encoding="utf-8"))):
            found |= dict.fromkeys(part.strip() for part in re.split(r"(?<=[.!?。！？\n])", text))
    words = (re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]", text) for text in found)
    return [parts for parts in words if len(parts) > 3]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def made(folder: Path, count: int, seed: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """(token ids of each row, the planted pairs)."""
    draw = random.Random(seed)
    pool = sentences(folder)
    numbers = {word: number for number, word in enumerate(sorted({word for parts in pool for word in parts}))}
    rows = [
        [numbers[word] for parts in draw.sample(pool, draw.randint(2, 9)) for word in parts]
        for _ in range(count * 9 // 10)
    ]
    pairs = []
    for _ in range(count - len(rows)):
        original = draw.randrange(count * 9 // 10)
        share = draw.choice((0.01, 0.02, 0.05, 0.1))
        pairs.append((original, len(rows)))
        rows.append([new for token in rows[original] for new in _edited(token, share, len(numbers), draw)])
    return rows, pairs


def _edited(token: int, share: float, words: int, draw: random.Random) -> list[int]:
    if draw.random() >= share:
        return [token]
    return draw.choice(([], [token, token], [draw.randrange(words)]))


def ngrams(row: list[int]) -> set[tuple[int, ...]]:
    return set(zip(*(row[place:] for place in range(NGRAM)), strict=False))


def jaccard(one: list[int], other: list[int]) -> float:
    first, second = ngrams(one), ngrams(other)
    return len(first & second) / max(len(first | second), 1)


# ---- the methods: rows -> pairs; in a process of their own, without luthier's imports where a library is measured


def by_luthier(ids: Any, offsets: Any) -> Any:
    from luthier.inspecting.data.near_duplicates import TokenRows, near_pairs

    return near_pairs(TokenRows((ids, offsets)), np.ones(len(offsets) - 1, dtype=bool)).pairs


def by_luthier_with_rensa(ids: Any, offsets: Any) -> Any:
    """luthier's own way, but for the smallest hashes of each row: those are rensa's."""
    from rensa import RMinHash  # type: ignore[import-not-found]

    from luthier.inspecting.data import near_duplicates as near

    def band_keys(rows: Any, common: Any, bands: range) -> Any:
        keys = [np.zeros(len(rows), dtype=np.uint64) for _ in bands]
        known = np.zeros(len(rows), dtype=bool)
        for first, some, places in rows.stretches():
            hashes, row = near._ngrams(some, places, common)
            counts = np.bincount(row, minlength=len(places) - 1)
            edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
            digests = np.array(RMinHash.digest_matrix_from_flat_token_hashes(hashes, edges, HASHES, 1).to_rows())
            enough = counts >= near.FEWEST_NGRAMS
            known[first : first + len(counts)] = enough
            for out, band in zip(keys, np.split(digests.astype(np.uint64), BANDS, axis=1), strict=True):
                mixed = np.zeros(len(counts), dtype=np.uint64)
                for column in band.T:
                    mixed = near.mix64(mixed * np.uint64(31) + column + np.uint64(1))
                out[first : first + len(counts)] = np.where(enough, mixed, 0)
        return keys, known

    near._band_keys, near.BANDS_AT_A_TIME = band_keys, BANDS  # type: ignore[assignment]
    return by_luthier(ids, offsets)


def by_datasketch(ids: Any, offsets: Any) -> Any:
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]

    index = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS))
    pairs = []
    runs = ([gram.tobytes() for gram in _runs(ids[a:b])] for a, b in itertools.pairwise(offsets))
    for row, sketch in enumerate(MinHash.generator(runs, num_perm=HASHES, seed=1)):
        found = index.query(sketch)
        pairs += [(other, row) for other in found]
        index.insert(row, sketch, check_duplication=False)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def by_rensa(ids: Any, offsets: Any) -> Any:
    from rensa import RMinHash, RMinHashLSH  # type: ignore[import-not-found]

    index = RMinHashLSH(threshold=SIMILAR, num_perm=HASHES, num_bands=BANDS)
    pairs = []
    for row, (a, b) in enumerate(itertools.pairwise(offsets)):
        sketch = RMinHash(num_perm=HASHES, seed=1)
        sketch.update([gram.tobytes().hex() for gram in _runs(ids[a:b])])
        pairs += [(other, row) for other in index.query(sketch)]
        index.insert(row, sketch)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _runs(row: Any) -> Any:
    return np.lib.stride_tricks.sliding_window_view(row, NGRAM) if len(row) >= NGRAM else row[:0].reshape(0, NGRAM)


def measure(method: str, file: Path, out: Path) -> None:
    """Runs one method and writes its pairs; seconds and the bytes that it needed beside the rows go to stdout."""
    loaded = np.load(file)
    ids, offsets = loaded["ids"], loaded["offsets"]
    work = dict(zip(METHODS, (by_luthier, by_luthier_with_rensa, by_datasketch, by_rensa), strict=True))[method]
    work(ids[: offsets[50]], offsets[:51])  # imports are not measured
    Path("/proc/self/clear_refs").write_text("5")  # from here on the highest memory is that of the work
    before, started = _peak_bytes(), time.perf_counter()
    processor = time.process_time()
    pairs = work(ids, offsets)
    seconds, busy = time.perf_counter() - started, time.process_time() - processor
    np.save(out, np.unique(np.asarray(pairs).reshape(-1, 2), axis=0))
    print(json.dumps({"seconds": seconds, "processor_seconds": busy, "bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def judged(rows: list[list[int]], planted: list[tuple[int, int]], pairs: Any) -> dict[str, float]:
    """Share of the planted pairs that are similar and end in one group; pairs that are given and are not similar."""
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    wrong = 0
    for one, other in pairs.tolist():
        if jaccard(rows[one], rows[other]) >= SIMILAR:
            parent[root(one)] = root(other)
        else:
            wrong += 1
    similar = [pair for pair in planted if jaccard(rows[pair[0]], rows[pair[1]]) >= SIMILAR]
    found = sum(root(one) == root(other) for one, other in similar)
    return {"planted": len(similar), "found": found, "pairs": len(pairs), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--libraries", default=sys.executable)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows, planted = made(given.data, given.rows, given.seed)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "rows.npz", Path(folder) / "pairs.npy"
        offsets = np.cumsum([0, *map(len, rows)])
        np.savez(file, ids=np.concatenate([np.array(row, dtype=np.int32) for row in rows]), offsets=offsets)
        print(f"{len(rows):,} rows, {offsets[-1]:,} tokens")
        for method in METHODS:
            python = sys.executable if method == "luthier" else given.libraries
            done = subprocess.run(
                [python, __file__, "--one", method, str(file), str(out)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{method}: not measured: {done.stderr.strip().splitlines()[-1]}")
                continue
            results[method] = json.loads(done.stdout) | judged(rows, planted, np.load(out))
            print(f"{method}: {results[method]}", flush=True)
    if given.record:
        keep(results, given.rows)


def keep(results: dict[str, dict[str, float]], rows: int) -> None:
    from luthier.system.machine import cores
    from records import Figure, record

    figures = []
    for method, found in results.items():
        name = "`luthier data`" if method == "luthier" else f"beside it, {method}"
        what = f"near duplicates among {rows:,} rows, {name}"
        figures += [
            Figure(f"{what}: time on the processor", round(found["processor_seconds"], 1), "s"),
            Figure(f"{what}: memory beside the rows", round(found["bytes"] / 2**20), "MiB"),
            Figure(f"{what}: planted pairs found", round(100 * found["found"] / found["planted"], 2), "%"),
            Figure(f"{what}: pairs told that are not similar", int(found["wrong"]), ""),
        ]
    command = f"python benchmarks/near_duplicates.py DATA_FOLDER --rows {rows}"
    record("near_duplicates", figures, command=command, device=f"{cores()} CPU cores, shared with others")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
