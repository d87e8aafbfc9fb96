"""Texts in blocks are what their plain definition says, and a run learns from each of their tokens once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import config
from luthier.data.dataset import workers
from luthier.data.dataset.blocks import Blocks, size_of_block
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.streamed import KEPT_CHUNKS
from luthier.data.steps.order import Steps
from luthier.errors import UserError
from luthier.models.reading import load_tokenizer
from luthier.training import run
from luthier.types import NO_TARGET, Pieces, Sample
from tests.helpers.jobs import Listed
from tests.helpers.killing import write_config
from tests.helpers.pairs import made
from tests.helpers.tiny_models import tiny_llama

WIKI = Path(__file__).parents[3] / "shared" / "data" / "wiki_demo.txt"


def texts(lengths: list[int]) -> Listed:
    """Of numbers that count on, so that each token is known by its id."""
    ends = np.cumsum(lengths)
    ids = [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    return Listed(
        [
            Sample(one, np.append(one[1:], NO_TARGET), f"book.txt:{index + 1}", index)
            for index, one in enumerate(ids)
        ]
    )


@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.integers(2, 20), st.integers(0, 3))
def test_blocks_are_the_stream_cut_every_so_many_tokens(lengths: list[int], size: int, later: int) -> None:
    rows = texts(lengths)
    edges = sorted({0, min(later, len(lengths) - 1)})
    blocks = Blocks(rows, size, True, edges)
    wanted = list[tuple[list[int], list[int]]]()
    for start, end in zip(edges, [*edges[1:], len(lengths)], strict=True):
        stream = [token for row in range(start, end) for token in rows[row].input_ids.tolist()]
        wanted += [
            (stream[:-1][at : at + size], stream[1:][at : at + size]) for at in range(0, len(stream) - 1, size)
        ]
    assert [(one.input_ids.tolist(), one.targets.tolist()) for one in blocks] == wanted
    assert sum(blocks.by_source) == len(blocks) == blocks.examples
    assert blocks.lengths.tolist() == blocks.trained.tolist() == [len(ids) for ids, _ in wanted]
    of = np.repeat(np.arange(len(lengths)), lengths)
    for number, (ids, _) in enumerate(wanted):
        assert list(blocks.rows_of(number)) == sorted(set(of[ids].tolist()))
        assert blocks.row(number) == blocks[number].row == f"book.txt:{of[ids[0]] + 1}"
    for row in range(len(lengths)):
        having = [number for number, (ids, _) in enumerate(wanted) if row in of[ids]]
        assert list(blocks.blocks_of(row)) == having


@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.integers(2, 20))
def test_texts_apart_are_cut_and_nothing_of_them_is_lost(lengths: list[int], size: int) -> None:
    rows = texts(lengths)
    blocks = Blocks(rows, size, False)
    wanted = [
        (row.input_ids[at : min(at + size, len(row) - 1)].tolist(), row.row)
        for row in rows
        for at in range(0, len(row) - 1, size)
    ]
    assert [(one.input_ids.tolist(), one.row) for one in blocks] == wanted
    assert all((one.targets == one.input_ids + 1).all() for one in blocks)


def test_a_block_names_the_rows_in_it() -> None:
    blocks = Blocks(texts([3, 3, 3, 9]), 8, True)
    assert [blocks.place(number) for number in range(3)] == [
        "book.txt:1 to book.txt:3 (3 rows)",
        "book.txt:3 to book.txt:4 (2 rows)",
        "book.txt:4",
    ]
    assert blocks.says() == "blocks: 3 blocks of 8 tokens, the shortest of 1; up to 3 texts in one"


@pytest.mark.parametrize(
    ("asked", "max_length", "fits", "size"),
    [(None, None, 4096, 2048), (None, None, 512, 512), (None, 4096, 4096, 4096), (None, None, None, 2048), (64, 99, 99, 64)],
)
def test_the_size_of_a_block(asked: int | None, max_length: int | None, fits: int | None, size: int) -> None:
    assert size_of_block(Pieces(asked, joined=True), max_length, fits) == size


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"600 tokens, and the model holds 512[\s\S]*objective\.block_size=512"):
        size_of_block(Pieces(600, joined=True), None, 512)
    with pytest.raises(UserError, match=r"600 tokens, and data\.max_length has 100"):
        size_of_block(Pieces(600, joined=True), 100, 100)


def prepared(folder: Path, objective: str, *overrides: str) -> Prepared:
    asked = config.load(
        None, [f"model={folder / 'model'}", f"data={folder / 'a.jsonl'}", f"objective={objective}", *overrides]
    )
    tokenizer = load_tokenizer(folder / "model", trust_remote_code=False)
    keys = asked.objective.model_dump()
    return prepare(asked, tokenizer, context_length=512, objective=made(**keys))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    for name, words in (("a", 40), ("b", 7)):
        rows = [{"text": " ".join(["violin", "wood", "bow"][: 1 + at % 3] * (1 + at % words))} for at in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def test_every_token_is_in_the_ledger_and_the_encoded_rows_do_not_depend_on_the_size(folder: Path) -> None:
    first = prepared(folder, "pretrain", "objective.block_size=64", "data.eval=0.2")
    ledger = first.ledger
    assert ledger.tokens_in == int(first.train.lengths.sum()) + ledger.tokens_held_out
    assert ledger.tokens_trained == int(first.learned["train"].trained.sum()) == int(first.train.lengths.sum()) - 1
    assert ledger.tokens_context == 1
    assert "of 64 tokens" in first.notes[0]
    eos = int(first.train[0].input_ids[-1])
    assert eos in first.learned["train"][0].input_ids
    other = prepared(folder, "{kind: pretrain, block_size: 100, documents: apart}", "data.eval=0.2")
    assert other.from_cache
    assert other.ledger.tokens_context == other.train.examples
    bare = prepared(folder, "{kind: pretrain, document_separator: none}", "data.eval=0.2")
    assert not bare.from_cache
    assert not any(eos in one.input_ids for one in bare.learned["train"])


@pytest.mark.parametrize(("documents", "learned"), [("joined", [False, True, True]), ("apart", [False] * 3)])
def test_a_row_is_shown_as_it_is_learned(
    documents: str, learned: list[bool], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first token of a text is learned where one stands before it; the report and a row alone say the same."""
    from luthier.cli import main

    pretrain = f"{{kind: pretrain, block_size: 64, documents: {documents}}}"
    keys = [f"model={folder / 'model'}", f"data={folder / 'a.jsonl'}", f"objective={pretrain}", "output_dir=out"]
    assert main(["data", *keys, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rows"]
    assert [row["tokens"][0]["trained"] for row in shown] == learned
    assert [row["trained"] == len(row["tokens"]) for row in shown] == learned
    for number, first in enumerate(learned, 1):
        assert main(["data", *keys, "--row", str(number), "--json"]) == 0
        (alone,) = json.loads(capsys.readouterr().out)["rows"]
        assert alone["tokens"][0]["trained"] == first
    assert main(["data", *keys, "--worst", "--json"]) == 0
    assert all("shortest" in row["why"][0] for row in json.loads(capsys.readouterr().out)["rows"])


def test_the_report_on_the_data_shows_the_blocks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli import main

    (folder / "mine.yaml").write_text(
        f"model: {folder / 'model'}\ndata: {folder / 'a.jsonl'}\nobjective: {{kind: pretrain, block_size: 64}}\noutput_dir: out\n"
    )
    assert main(["data", str(folder / "mine.yaml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "blocks of 64 tokens" in said
    assert "a.jsonl:1" in said
    assert "in block 1 of" in said
    assert main(["data", str(folder / "mine.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ledger"]["tokens_context"] == 1
    assert "rows)" in " ".join(found["rows"][0]["why"])


@pytest.mark.parametrize("documents", ["joined", "apart"])
def test_streamed_rows_give_the_same_blocks(documents: str, folder: Path) -> None:
    objective = "{kind: pretrain, block_size: 48, documents: " + documents + "}"
    kept, streamed = (prepared(folder, objective, f"data.streaming={value}") for value in ("false", "true"))
    assert [one.input_ids.tolist() for one in kept.learned["train"]] == [
        one.input_ids.tolist() for one in streamed.learned["train"]
    ]


@pytest.mark.parametrize(("count", "words", "size"), [(3000, 3, 60), (200, 100, 10)])
def test_streamed_rows_are_not_encoded_for_each_block_again(
    count: int, words: int, size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of many short rows, and rows of many blocks."""
    monkeypatch.setattr(workers, "CHUNK_ROWS", 16)
    monkeypatch.setattr(workers, "CHUNK_CHARACTERS", 600)
    rows = [{"text": f"{number} " + "word " * words} for number in range(count)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    encoded, encode = list[int](), workers.Encoding.chunk

    def counted(self: workers.Encoding, *given: Any) -> workers.Chunk:
        encoded.append(1)
        return encode(self, *given)

    monkeypatch.setattr(workers.Encoding, "chunk", counted)
    objective = "{kind: pretrain, block_size: " + str(size) + "}"
    found = prepared(folder, objective, f"data.train={folder / 'many.jsonl'}", "data.streaming=true", "num_workers=0")
    chunks, blocks = len(encoded), found.learned["train"]
    assert chunks > KEPT_CHUNKS
    steps = Steps(len(blocks), 64, 0, 1.0, neighbours=blocks.neighbours)
    seen = sum(len(blocks[index]) for step in range(steps.total) for index in steps.indices(step))
    assert seen == int(blocks.lengths.sum())
    assert len(encoded) - chunks <= 3 * chunks


def test_a_source_of_a_mixture_has_a_block(folder: Path) -> None:
    (folder / "short.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    files = f"data.train=[{folder / 'a.jsonl'}, {folder / 'short.jsonl'}]"
    with pytest.raises(UserError, match="short") as caught:
        prepared(folder, "{kind: pretrain, document_separator: none}", files, "data.mixing=all_exhausted")
    assert "one token" in str(caught.value)


def test_no_block_of_a_mixture_has_texts_of_two_sources(folder: Path) -> None:
    files = f"data.train=[{folder / 'a.jsonl'}, {folder / 'b.jsonl'}]"
    found = prepared(folder, "{kind: pretrain, block_size: 50}", files, "data.mixing=all_exhausted")
    blocks = found.learned["train"]
    assert isinstance(blocks, Blocks)
    assert found.mixture is not None
    assert found.mixture.sizes == blocks.by_source
    for number in range(len(blocks)):
        assert len({found.train.row(row).rpartition(":")[0] for row in blocks.rows_of(number)}) == 1


def test_other_rows_are_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(UserError, match="a text, which the objective takes"):
        prepared(tmp_path, "pretrain")


def text_config(folder: Path, objective: str) -> Path:
    path = write_config(folder, objective)
    for name in ("train", "held"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        lines = [json.dumps({"text": f"{row['prompt']} {row['chosen']}"}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return path


OBJECTIVES = ("{kind: pretrain, block_size: 24}", "{kind: pretrain, block_size: 24, documents: apart}")


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines for name in ("loss", "eval_perplexity") if name in line]


def test_a_run_reports_perplexity_and_how_a_step_is_cut_does_not_matter(tmp_path: Path) -> None:
    config_file, curves = text_config(tmp_path, OBJECTIVES[0]), list[list[float]]()
    for number, limit in enumerate((24, 1000)):
        overrides = [f"output_dir={tmp_path / str(number)}", "max_steps=3", f"max_tokens_per_micro_batch={limit}"]
        run.execute(config.load(config_file, overrides), say=lambda line: None)
        curves.append(losses(tmp_path / str(number)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert len(curves[0]) >= 5
    assert not (tmp_path / "0" / "row_losses.jsonl").exists() or not (tmp_path / "0" / "row_losses.jsonl").read_text()


@pytest.mark.prove
@pytest.mark.skipif(not WIKI.is_file(), reason="the text is not on this machine")
def test_the_perplexity_of_real_text_falls(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    settings: list[Any] = [f"model={tmp_path / 'model'}", f"data={WIKI}", "data.eval=0.1", "tuning=full", "max_steps=60"]
    settings += ["objective={kind: pretrain, block_size: 128}", "global_batch_size=8", "learning_rate=3e-3", "eval_steps=60"]
    run.execute(config.load(None, [*settings, f"output_dir={tmp_path / 'run'}"]), say=lambda line: None)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    before, after = (line["eval_perplexity"] for line in lines if "eval_perplexity" in line)
    assert before > 300
    assert after < before / 3
    assert math.isfinite(after)
