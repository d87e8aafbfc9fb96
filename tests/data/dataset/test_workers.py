"""However data are encoded (in one process or several, at once or after a kill, kept or streamed), the result is one."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import component, config
from luthier.data.dataset import cache, prepare, workers
from luthier.data.dataset.prepare import Prepared
from luthier.data.steps.order import BLOCKS_OF_A_WINDOW, Mixture, Steps
from luthier.errors import EnvironmentProblem, UserError
from luthier.types import Row
from tests.helpers import tokenizers
from tests.helpers.properties import examples

CHUNK_ROWS = 64
ROWS = 5 * CHUNK_ROWS + 17


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(workers, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.chdir(tmp_path)


def write(name: str, count: int, every_bad: int = 97) -> None:
    """Rows of many lengths; one of `every_bad` cannot be used, and prompts repeat."""
    rows = [
        {
            "instruction": f"{name} request {number % 190}",
            "output": "" if every_bad and number % every_bad == 5 else "word " * (1 + number * 7 % 23) + str(number),
        }
        for number in range(count)
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*overrides: str, data: str = "train.jsonl", watch: Any = lambda rows, share: None) -> Prepared:
    wanted = config.load(None, ["model=m", f"data.train={data}", "output_dir=runs/x", "on_bad_row=drop", *overrides])
    objective = component.load("objectives", "sft")(wanted.objective)
    return prepare.prepare(wanted, tokenizers.chatml(), context_length=None, objective=objective, watch=watch)


def content(prepared: Prepared) -> dict[str, Any]:
    """All that a run sees."""
    out: dict[str, Any] = {"ledger": dataclasses.asdict(prepared.ledger), "rejected": prepared.rejected}
    for name, samples in (("train", prepared.train), ("eval", prepared.eval)):
        assert samples is not None
        out[name] = [(s.input_ids.tolist(), s.targets.tolist(), s.row, s.example, s.group) for s in samples]
        out[f"{name} fingerprint"] = samples.fingerprint
        for array in ("lengths", "trained", "groups", "first_samples", "prompt_keys"):
            out[f"{name} {array}"] = np.asarray(getattr(samples, array)).tolist()
    return out


def fresh() -> None:
    """Forgets what is in the cache."""
    os.environ["LUTHIER_CACHE"] += "x"


def test_one_process_or_several_kept_or_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", os.environ["LUTHIER_CACHE"])
    write("train.jsonl", ROWS)
    one = run("num_workers=0", "data.eval=0.2")
    assert one.ledger.rows_dropped == len(one.rejected) == len(range(5, ROWS, 97))
    wanted = content(one)
    streamed = run("streaming=true", "num_workers=0", "data.eval=0.2")
    assert streamed.train.neighbours is not None
    assert not streamed.from_cache
    assert content(streamed) == wanted
    assert [streamed.train.row(index) for index in (0, 200, len(one.train) - 1)] == [
        one.train.row(index) for index in (0, 200, len(one.train) - 1)
    ]
    fresh()
    several = run("num_workers=3", "data.eval=0.2")
    assert not several.from_cache
    assert content(several) == wanted
    assert not list((cache.cache_dir() / "encoded").glob(".*"))


def test_streaming_writes_nothing_and_notices_a_changed_file() -> None:
    write("train.jsonl", ROWS)
    streamed = run("streaming=true", "num_workers=2")
    assert not (Path(os.environ["LUTHIER_CACHE"]) / "encoded").exists()
    first = streamed.train[0]
    write("train.jsonl", 3)
    assert (streamed.train[0].input_ids == first.input_ids).all()  # still in memory
    with pytest.raises(UserError, match="the file changed"):
        streamed.train[len(streamed.train) - 1]


def _killed_after(rows: int, workers: int, connection: Any) -> None:
    def watch(done: int, share: float) -> None:
        if done >= rows:
            connection.send(done)
            os.kill(os.getpid(), signal.SIGKILL)

    cache.NOTED_EVERY_S = 0.0
    run("data.eval=0.2", f"num_workers={workers}", data="[train.jsonl, more.jsonl]", watch=watch)


@pytest.mark.prove
def test_a_killed_encoding_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", os.environ["LUTHIER_CACHE"])
    write("train.jsonl", ROWS)
    write("more.jsonl", 2 * CHUNK_ROWS + 1, every_bad=50)
    wanted = content(run("data.eval=0.2", "num_workers=0", data="[train.jsonl, more.jsonl]"))
    fresh()
    context = multiprocessing.get_context("fork")
    for rows, count in ((1, 0), (3 * CHUNK_ROWS, 2), (ROWS + CHUNK_ROWS, 0)):
        ours, theirs = context.Pipe()
        process = context.Process(target=_killed_after, args=(rows, count, theirs))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert ours.recv() >= rows
    seen: list[int] = []
    last = run(
        "data.eval=0.2", "num_workers=0", data="[train.jsonl, more.jsonl]", watch=lambda done, share: seen.append(done)
    )
    assert seen[0] > ROWS + CHUNK_ROWS  # nothing was encoded twice
    assert content(last) == wanted


def test_between_two_files_nothing_is_counted_twice() -> None:
    write("train.jsonl", CHUNK_ROWS)
    write("more.jsonl", CHUNK_ROWS)
    wanted = content(run("data.eval=0.2", data="[train.jsonl, more.jsonl]"))
    fresh()

    def interrupt(done: int, share: float) -> None:
        if done > CHUNK_ROWS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("data.eval=0.2", data="[train.jsonl, more.jsonl]", watch=interrupt)
    assert content(run("data.eval=0.2", data="[train.jsonl, more.jsonl]")) == wanted


def test_long_rows_make_short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", ROWS)
    wanted = content(run("data.eval=0.2"))
    fresh()
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 150)
    rows: list[Any] = [Row({"a": [{"b": "x" * size}]}, "f", number) for number, size in enumerate((99, 1, 250, 5, 5))]
    assert [[row.number for row in chunk] for chunk in workers.chunks_of(rows)] == [[0, 1], [2], [3, 4]]
    assert content(run("data.eval=0.2")) == wanted


@pytest.mark.prove
def test_an_interrupted_encoding_keeps_what_it_has_and_a_refused_one_nothing() -> None:
    write("train.jsonl", ROWS)

    def interrupt(done: int, share: float) -> None:
        if done >= 2 * CHUNK_ROWS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("num_workers=2", watch=interrupt)
    (left,) = [path for path in (cache.cache_dir() / "encoded").iterdir() if path.is_dir()]
    assert json.loads((left / cache.PROGRESS).read_text())["account"]["rows"] == 2 * CHUNK_ROWS
    (left / "train" / "input_ids.npy").write_bytes(b"")  # what it has is damaged: begun again
    assert len(run("num_workers=2").train) == ROWS - len(range(5, ROWS, 97))
    with pytest.raises(UserError, match="4 of 337 rows cannot be used"):
        run("on_bad_row=error", "num_workers=2")
    assert len(list((cache.cache_dir() / "encoded").iterdir())) == 1


def test_a_worker_that_is_ended_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", ROWS)
    kind = component.load("formats", "alpaca")
    monkeypatch.setattr(kind, "parse", lambda self, row: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(EnvironmentProblem, match=r"data\.num_workers"):
        run("num_workers=2", data="[{path: train.jsonl, format: alpaca}]")


def test_unused_data_are_removed_in_time() -> None:
    write("train.jsonl", 3)
    old = run().train.folder  # type: ignore[attr-defined]
    os.utime(old.parent, (0, 0))
    assert run().from_cache  # which counts as use
    write("train.jsonl", 4)
    run()
    assert old.exists()
    os.utime(old.parent, (0, 0))
    write("train.jsonl", 2)
    run()
    assert not old.exists()


# ---- the order of the data


@given(st.integers(1, 20_000), st.sampled_from([1, 7, 512]), st.integers(1, 5000), st.integers(0, 9), st.integers(0, 3))
@examples(40)
def test_streamed_order_covers_all_once_and_stays_near(
    examples: int, neighbours: int, batch: int, seed: int, epoch: int
) -> None:
    steps, window = Steps(examples, batch, seed, 9.0, neighbours=neighbours), BLOCKS_OF_A_WINDOW * neighbours
    order = [i for inside in range(steps.per_epoch) for i in steps.indices(epoch * steps.per_epoch + inside)]
    assert sorted(order) == list(range(examples))
    for start in range(0, examples, window):
        blocks = {i // neighbours for i in order[start : start + window]}
        # the last block of a file is short, so windows need not fall on blocks
        assert len(blocks) <= BLOCKS_OF_A_WINDOW + 1


@pytest.mark.prove
@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0.1, 10)), min_size=1, max_size=4),
    st.sampled_from(["first_exhausted", "all_exhausted"]),
    st.sampled_from([None, 5, 512]),
    st.integers(0, 5),
)
@examples(150)
def test_mixtures(sources: list[tuple[int, float]], until: Any, neighbours: int | None, seed: int) -> None:
    sizes, weights = zip(*sources, strict=True)
    mixture = Mixture(sizes, weights, until)
    steps = Steps(sum(sizes), 16, seed, 4.0, mixture=mixture, neighbours=neighbours)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    seen: Counter[int] = Counter()
    for epoch in range(4):
        span = range(epoch * steps.per_epoch, (epoch + 1) * steps.per_epoch)
        order = [i for step in span for i in steps.indices(step)]
        from_source = np.searchsorted(starts, order, side="right") - 1
        assert np.bincount(from_source, minlength=len(sizes)).tolist() == list(mixture.counts)
        seen.update(order)
    share = np.asarray(weights) / sum(weights)
    total = sum(mixture.counts)
    assert all(abs(c - total * s) <= len(sizes) + 1 for c, s in zip(mixture.counts, share, strict=True))
    full = [count / size for count, size in zip(mixture.counts, sizes, strict=True)]
    assert min(full) >= 1 - 1e-9 if until == "all_exhausted" else max(full) <= 1 + 1e-9 or min(mixture.counts) == 1
    for source, size in enumerate(sizes):  # rows of one source are seen equally often, but for one
        times = [seen[i] for i in range(starts[source], starts[source] + size)]
        assert max(times) - min(times) <= 1


def test_mixing_reads_weights_and_says_what_an_epoch_has() -> None:
    write("train.jsonl", 300, every_bad=0)
    write("more.jsonl", 100, every_bad=0)
    files = "[{path: train.jsonl, weight: 3.0}, {path: more.jsonl, weight: 2.0}]"
    mixed = run("mixing=first_exhausted", data=files)
    assert mixed.mixture == Mixture((300, 100), (3.0, 2.0), "first_exhausted")
    assert mixed.mixture.counts == (150, 100)
    assert "150 of 300 from train.jsonl, 100 of 100 from more.jsonl" in mixed.notes[-1]
    assert run(data="[train.jsonl, more.jsonl]").mixture is None
    again = run("mixing=all_exhausted", data=files)
    assert again.from_cache  # what is drawn does not change what is encoded
    assert again.mixture is not None
    assert again.mixture.counts == (300, 200)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_an_entry_is_mixed_as_one_whatever_its_files(streaming: str) -> None:
    """Shards of other sizes than their neighbours', one of them without a row that can be used."""
    Path("shards").mkdir()
    for name, count in (("a", 200), ("c", 200), ("d", 17)):
        write(f"shards/{name}.jsonl", count, every_bad=0)
    write("b.jsonl", 500, every_bad=0)
    Path("shards/b.jsonl").write_text('{"instruction": "asked", "output": ""}\n' * 6)
    files = "[{path: shards}, {path: b.jsonl, weight: 2.0}]"
    mixed = run("mixing=first_exhausted", f"streaming={streaming}", data=files)
    assert mixed.mixture == Mixture((417, 500), (1.0, 2.0), "first_exhausted")
    assert "250 of 417 from shards, 500 of 500 from b.jsonl" in mixed.notes[-1]
    assert mixed.train.row(416).startswith("shards/d.jsonl")
    assert mixed.train.row(417).startswith("b.jsonl")


def test_a_worker_that_is_killed_as_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what it had to say is in the pipe; whoever reads would wait for the rest for ever."""
    write("train.jsonl", ROWS)
    parent, send = os.getpid(), Connection._send

    def half(self: Connection, data: bytes, *rest: Any) -> None:
        if os.getpid() != parent and len(data) > 1_000:
            os.write(self.fileno(), data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, data, *rest)

    monkeypatch.setattr(Connection, "_send", half)
    monkeypatch.setattr(workers, "PATIENCE_S", 0.2)
    with pytest.raises(EnvironmentProblem, match="a process that encodes was ended"):
        run("num_workers=2")
    assert not multiprocessing.active_children()
