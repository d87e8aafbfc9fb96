"""From files to samples: what is refused and how, what is dropped and counted, the split, the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier import component, config
from luthier.data.dataset import workers as module
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.samples import DamagedCache, SampleBuffer, Samples, SampleWriter
from luthier.errors import UserError
from luthier.types import NO_TARGET, Sample
from tests.helpers import tokenizers

Rows = Sequence[Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def alpaca(count: int, answer: str = "an answer") -> list[dict[str, str]]:
    return [{"instruction": f"request {number}", "input": "", "output": answer} for number in range(count)]


def lines(rows: Rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def run(
    rows: Rows | None = None,
    *overrides: str,
    tokenizer: Any = None,
    context: int | None = None,
    refuse: bool = True,
) -> Prepared:
    if rows is not None:
        Path("train.jsonl").write_text(lines(rows), encoding="utf-8")
    wanted = config.load(None, ["model=m", "data=train.jsonl", "output_dir=runs/x", *overrides])
    objective = component.make("objectives", wanted.objective)
    tokenizer = tokenizer or tokenizers.chatml()
    return prepare(wanted, tokenizer, context_length=context, objective=objective, refuse=refuse)


def refused(*args: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(*args, **named)
    return str(caught.value)


def test_all_rows_are_encoded_and_accounted_for() -> None:
    prepared = run(alpaca(30))
    assert len(prepared.train) == 30
    assert prepared.eval is None
    assert [(sample.example, sample.group) for sample in prepared.train] == [(index, 0) for index in range(30)]
    assert prepared.train[4].row == prepared.train.row(4) == "train.jsonl:5"
    assert prepared.train.lengths.sum() == prepared.ledger.tokens_in
    assert (
        prepared.train.trained.sum() == prepared.ledger.tokens_trained == sum(s.trained_tokens for s in prepared.train)
    )
    prepared.ledger.check()
    assert "30 in = 30 trained" in prepared.ledger.as_text()
    assert json.loads(json.dumps(prepared.ledger.as_dict()))["sources"][0]["format"] == "alpaca"


def test_all_bad_rows_are_listed_at_once() -> None:
    rows = [*alpaca(5), {"instruction": "a", "output": ""}, '{"broken', *alpaca(300), {"instruction": 3, "output": "b"}]
    text = refused(rows)
    assert "3 of 308 rows cannot be used (0.97 %)" in text
    for place in ("train.jsonl:6  output", "train.jsonl:7: found broken JSON", "train.jsonl:308  instruction"):
        assert place in text
    assert "on_bad_row=drop" in text
    many = refused([{"instruction": "a", "output": ""}] * 100)
    assert many.count("train.jsonl:") == 20
    assert "and 80 more" in many
    assert not list(Path("cache/encoded").glob("*"))  # nothing half-made is left


def test_who_only_looks_goes_on_and_a_run_still_refuses_what_lies_in_the_cache_then() -> None:
    rows = [*alpaca(5), {"instruction": "a", "output": ""}]
    text = refused(rows)
    looked = run(None, refuse=False)
    assert not looked.from_cache
    assert (len(looked.train), str(looked.refused)) == (5, text)
    again = run(None, refuse=False)
    assert again.from_cache
    assert str(again.refused) == text
    assert refused() == text
    assert run(alpaca(5), refuse=False).refused is None
    assert run().from_cache
    assert "3 of 3 rows cannot be used" in refused([{"instruction": "a", "output": ""}] * 3, refuse=False)
    assert "1 of 6 rows cannot be used" in refused(rows, "data.eval=1e-9", refuse=False)


def test_dropped_rows_are_counted_and_kept() -> None:
    bad = {"instruction": "a", "output": "", "note": "mine"}
    stopped = {"instruction": "a", "output": "b<|im_end|>"}
    prepared = run([*alpaca(3), bad, '{"broken', stopped], "on_bad_row=drop")
    assert len(prepared.train) == 3
    assert [item["row"] for item in prepared.rejected] == [bad, '{"broken', stopped]
    assert prepared.rejected[0]["where"] == "train.jsonl:4  output"
    assert prepared.ledger.dropped == {
        "unusable": ["train.jsonl:4", "train.jsonl:5"],
        "breaks the law answer_has_no_terminator": ["train.jsonl:6"],
    }
    assert prepared.ledger.laws["answer_has_no_terminator"] == 1
    assert run(None, "on_bad_row=drop").rejected == prepared.rejected  # from the cache


def test_long_rows() -> None:
    rows = [*alpaca(4), {"instruction": "short", "output": "word " * 60}, {"instruction": "word " * 60, "output": "x"}]
    text = refused(rows, context=80)
    assert "2 of 6 rows" in text
    assert "train.jsonl:5: found" in text
    assert "expected at most 80" in text
    assert "on_long_row=drop" in text
    assert "on_bad_row" not in text
    dropped = run(None, "on_long_row=drop", "max_length=80", context=4096)
    assert len(dropped.train) == 4
    assert dropped.ledger.dropped == {"longer than the limit": ["train.jsonl:5", "train.jsonl:6"]}
    assert [item["where"] for item in dropped.rejected] == ["train.jsonl:5", "train.jsonl:6"]
    text = refused(None, "on_long_row=truncate", context=80)  # of row 6 no answer would be left
    assert "1 of 6 rows" in text
    assert "train.jsonl:6" in text
    cut = run(rows[:5], "on_long_row=truncate", context=80)
    whole = run(rows[:5])
    sample, full = cut.train[4], whole.train[4]
    assert len(sample) == 80
    assert (sample.input_ids == full.input_ids[:80]).all()
    assert sample.targets[-1] == NO_TARGET
    assert (sample.targets[:-1] == full.targets[:79]).all()
    assert tokenizers.chatml().eos_token_id not in sample.targets
    assert cut.ledger.cut == ["train.jsonl:5"]
    assert cut.ledger.answer_tokens_cut == full.trained_tokens - sample.trained_tokens
    assert cut.ledger.tokens_cut == len(full) - 80
    lost = cut.ledger.answer_tokens_cut
    assert f" 1 row lost its end with {lost} tokens of answers (train.jsonl:5)" in cut.ledger.as_text()


def sample(length: int, group: int, prompt: int = 2) -> Sample:
    ids = np.arange(length)
    targets = np.where(ids < prompt - 1, NO_TARGET, ids + 1)
    targets[-1] = NO_TARGET
    return Sample(ids, targets, "x:1", 0, group)


def test_what_is_read_together_is_whole_or_not_there() -> None:
    """Answers of a split row end at the limit, each for itself; of a pair no half is left, and none is cut."""

    def left(*samples: Sample) -> list[tuple[int, int]]:
        return [(one.group, len(one)) for one in module.within(samples, 10)]

    assert left(sample(5, 0), sample(14, 1), sample(20, 2, prompt=12)) == [(0, 5), (1, 10)]
    assert left(sample(5, 0), sample(14, 0)) == []
    assert left(sample(14, 0), sample(14, 0)) == []
    assert left(sample(5, 0), sample(10, 0)) == [(0, 5), (0, 10)]
    assert left(sample(5, 0), sample(14, 0), sample(6, 1), sample(6, 1), sample(14, 2)) == [(1, 6), (1, 6), (2, 10)]
    assert [len(one) for one in module.within([sample(5, 0), sample(14, 0)], 10, together=False)] == [5, 10]
    (cut,) = module.within([sample(14, 3)], 10)
    assert (cut.targets[-1], cut.trained_tokens) == (NO_TARGET, 8)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_pair_that_is_too_long_in_one_half_goes_whole(streaming: str) -> None:
    """Dropped it is one row with the tokens of both; it is never cut, and the ledger adds up."""
    rows = [{"prompt": f"x: {groups}", "completion": "word " * 6} for groups in ("0", "0 0", "0 0 0 0 0 0 0", "0 1 2")]
    keys = ["objective=tests.helpers.split_rows:Several", f"streaming={streaming}"]
    whole = run(rows, *keys)
    assert (whole.train.examples, len(whole.train)) == (4, 13)
    longest = int(whole.train.lengths.max())
    dropped = run(None, *keys, f"max_length={longest - 1}", "on_long_row=drop")
    assert dropped.ledger.dropped == {"longer than the limit": ["train.jsonl:3"]}
    assert dropped.ledger.tokens_dropped == whole.train.lengths[3:10].sum()
    assert [sample.example for sample in dropped.train] == [0, 1, 1, 2, 2, 2]
    refused_row = refused(None, *keys, f"max_length={longest - 1}", "on_long_row=truncate")
    assert "1 of 4 rows cannot be used" in refused_row
    assert "train.jsonl:3" in refused_row


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_shares_bounds_and_mixtures_count_rows(streaming: str) -> None:
    rows = [{"prompt": f"{number}: " + "0 " * (1 + number % 5), "completion": "word"} for number in range(40)]
    Path("more.jsonl").write_text(lines(rows[:6]), encoding="utf-8")
    keys = ["objective=tests.helpers.split_rows:Several", f"streaming={streaming}"]
    found = run(rows, *keys, "data.eval=0.25")
    assert found.eval is not None
    for part, purpose in ((found.train, "rows_trained"), (found.eval, "rows_held_out")):
        assert part.examples == getattr(found.ledger, purpose)
        for example in range(part.examples):
            number = int(part.row(example).rpartition(":")[2]) - 1
            assert len(part.members_of([example])) == 1 + number % 5
    assert run(None, *keys, "max_samples=7").train.examples == 7
    mixed = run(None, *keys, "data.train=[train.jsonl, more.jsonl]", "mixing=first_exhausted")
    assert mixed.mixture is not None
    assert mixed.mixture.sizes == (40, 6)
    assert "6 of 40 from train.jsonl, 6 of 6 from more.jsonl" in mixed.notes[-1]


def test_an_objective_that_makes_nothing_of_a_row_says_so() -> None:
    rows = [{"prompt": "x: 0", "completion": "word"}, {"prompt": "x:", "completion": "word"}]
    text = refused(rows, "objective=tests.helpers.split_rows:Several")
    assert "train.jsonl:2" in text
    assert "makes no sample" in text


def test_exactly_the_limit_fits() -> None:
    longest = int(run(alpaca(3)).train.lengths.max())
    assert len(run(None, f"max_length={longest}").train) == 3
    assert "cannot be used" in refused(None, f"max_length={longest - 1}")


def test_twins_never_straddle_and_new_rows_never_reshuffle() -> None:
    rows = alpaca(200) + alpaca(200, "another answer")
    prepared = run(rows, "data.eval=0.2")
    assert prepared.eval is not None
    held = {sample.row for sample in prepared.eval}
    assert 20 < len(held) < 140
    assert prepared.ledger.rows_held_out == len(held)
    for row in held:
        number = int(row.rpartition(":")[2])
        assert f"train.jsonl:{number + 200 if number <= 200 else number - 200}" in held
    more = run([*rows, *({"instruction": f"new {n}", "output": "x"} for n in range(50))], "data.eval=0.2")
    assert more.eval is not None
    assert held <= {sample.row for sample in more.eval}
    assert "holds out none" in refused(alpaca(2), "data.eval=1e-9")


def test_held_out_files_and_their_overlap() -> None:
    Path("eval.jsonl").write_text(lines([*alpaca(2), {"instruction": "unseen", "output": "x"}]))
    prepared = run(alpaca(10), "data.eval=eval.jsonl")
    assert prepared.eval is not None
    assert [sample.row for sample in prepared.eval] == ["eval.jsonl:1", "eval.jsonl:2", "eval.jsonl:3"]
    assert prepared.ledger.held_out_prompts_also_trained == 2
    assert prepared.ledger.rows_in == 13


def test_formats_are_recognised_or_the_columns_are_named() -> None:
    assert run([{"text": "plain"}], tokenizer=tokenizers.base()).train[0].trained_tokens > 0
    text = refused([{"question": "a", "answer": "b"}])
    assert "['answer', 'question']" in text
    for kind in component.listing("formats"):
        assert f"{kind} ({', '.join(component.load('formats', kind).columns)})" in text
    text = refused([{"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}])
    assert "several formats" in text
    assert "alpaca, prompt_completion" in text
    assert len(run(None, "data=[{path: train.jsonl, format: alpaca}]").train) == 1
    assert "there is no 'alpacca'" in refused(None, "data=[{path: train.jsonl, format: alpacca}]")


def test_answers_that_a_csv_file_calls_bad_are_not_learned() -> None:
    for columns in ("instruction,output,label", "prompt,completion,label"):
        Path("train.csv").write_text(f"{columns}\na,b,1\nc,d,0\n")
        assert "found a feedback" in refused(None, "data=train.csv")
    Path("train.csv").write_text("instruction,output,label\na,b,sports\nc,d,0\n")
    assert "train.csv:3  label: found a verdict on an answer" in refused(None, "data=train.csv")


def test_rows_for_another_objective_name_it_and_dropping_all_of_them_is_no_advice() -> None:
    pairs = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(3)]
    able = " or ".join(f"objective={kind}" for kind in ("cpo", "dpo", "kto", "orpo", "reward", "simpo"))
    assert refused(pairs).endswith(f"fix: {able}")
    assert refused([{"prompt": "p", "completion": "a", "label": True}] * 3).endswith("fix: objective=kto")


def test_answers_in_a_column_that_no_format_knows_are_found() -> None:
    fix = "data.train={path: train.jsonl, format: {kind: alpaca, instruction: prompt, input: null, output: answer}}"
    rows = [{"prompt": "a", "answer": "b"}] * 2
    assert "found a prompt; expected a conversation or text, which the objective takes\n" in refused(rows)
    assert refused(rows).endswith(f"fix: '{fix}'")  # dropping all rows is no help
    assert len(run(None, fix).train) == 2
    assert "kind: alpaca" not in refused([{"prompt": "a"}])


def test_missing_templates_rows_and_files() -> None:
    text = refused(alpaca(1), tokenizer=tokenizers.base())
    assert "no chat template" in text
    assert "data.chat_template=FILE" in text
    Path("own.jinja").write_text(tokenizers.CHATML)
    assert len(run(None, "chat_template=own.jinja", tokenizer=tokenizers.base()).train) == 1
    assert "own2.jinja" in refused(None, "chat_template=own2.jinja")
    Path("broken.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    assert "broken.jinja:2: no Jinja template" in refused(None, "chat_template=broken.jinja")
    for empty in ("", "\n\n"):
        Path("train.jsonl").write_text(empty)
        assert "empty" in refused()
    Path("train.jsonl").write_text("[]")
    assert "no rows" in refused()
    assert "no rows are left" in refused([{"instruction": "", "output": ""}] * 3, "on_bad_row=drop")
    assert "no such file" in refused(None, "data=nowhere.jsonl")


def test_one_system_text_for_all_is_remembered() -> None:
    same = [{**row, "system": "Be Zhen Huan."} for row in alpaca(3)]
    prepared = run(same)
    assert prepared.system == "Be Zhen Huan."
    assert "luthier chat serves with it" in prepared.notes[0]
    assert run([*same, *alpaca(1)]).system is None
    Path("eval.jsonl").write_text(lines(alpaca(1)))
    assert run(same, "data.eval=eval.jsonl").system == "Be Zhen Huan."
    Path("eval.jsonl").write_text(lines(same))
    assert run(alpaca(1), "data.eval=eval.jsonl").system is None


def test_a_system_text_is_put_before_conversations_that_have_none() -> None:
    asked = [{**row, "system": "Be Zhen Huan."} for row in alpaca(3)]
    given = run(alpaca(3), "data.system='Be Zhen Huan.'")
    assert given.system == "Be Zhen Huan."
    assert [list(sample.input_ids) for sample in given.train] == [list(sample.input_ids) for sample in run(asked).train]
    other = {**alpaca(1)[0], "system": "Be brief."}
    mixed, own = run([*alpaca(1), other], "data.system='Be Zhen Huan.'"), run([other])
    assert mixed.system is None
    assert list(mixed.train[1].input_ids) == list(own.train[0].input_ids)
    text = [{"text": "A text has no system text."}]
    assert list(run(text, "data.system='Be Zhen Huan.'").train[0].input_ids) == list(run(text).train[0].input_ids)


def test_the_cache_follows_everything_that_matters() -> None:
    first = run(alpaca(20))
    assert not first.from_cache
    again = run()
    assert again.from_cache
    assert again.train.fingerprint == first.train.fingerprint
    assert again.ledger == first.ledger
    other = [
        run(alpaca(21)),
        run(alpaca(20), "data.eval=0.5"),
        run(None, "max_length=1000"),
        run(None, "on_bad_row=drop"),
        run(None, tokenizer=tokenizers.chatml(template=tokenizers.CHATML.replace("helpful", "careful"))),
        run(None, tokenizer=tokenizers.chatml(400)),
    ]
    assert not any(prepared.from_cache for prepared in other)
    assert run().from_cache


THINKS = "{{ 'thinks' if enable_thinking else 'answers' }}: " + tokenizers.CHATML
PLAIN = "data=[{path: train.jsonl}]"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, "data.system=Be brief."),
        (None, "on_long_row=drop"),
        (None, "on_long_row=truncate"),
        (None, "on_system=fold"),
        ("enable_thinking=true", "enable_thinking=false"),
        (None, "max_samples=19"),
        (PLAIN, "data=[{path: train.jsonl, num_samples: 19}]"),
        (PLAIN, "data=[{path: train.jsonl, format: alpaca}]"),
        (
            "data=[{path: train.jsonl, format: alpaca}]",
            "data=[{path: train.jsonl, format: {kind: alpaca, input: null}}]",
        ),
        (PLAIN, "data=[{path: train.jsonl}, {path: train.jsonl}]"),
        (PLAIN, "data={train: [{path: train.jsonl}], eval: [{path: train.jsonl}]}"),
    ],
)
def test_the_cache_follows_each_key(one: str | None, other: str) -> None:
    tokenizer = tokenizers.chatml(template=THINKS)
    first = run(alpaca(20), *([one] if one else []), tokenizer=tokenizer)
    assert not first.from_cache
    assert not run(None, other, tokenizer=tokenizer).from_cache
    assert run(None, *([one] if one else []), tokenizer=tokenizer).from_cache


def test_the_cache_follows_the_objective_the_stop_ids_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    run(alpaca(20))
    with monkeypatch.context() as patch:
        patch.setattr("luthier.data.chat.renderer.stop_ids_of", lambda tokenizer: {0, 2})
        assert not run().from_cache
    with monkeypatch.context() as patch:
        patch.setattr("luthier.data.dataset.identity.version", lambda name: "another")
        assert not run().from_cache
    with monkeypatch.context() as patch:
        patch.setattr(
            component.load("objectives", "sft").Config, "model_dump", lambda *args, **named: {"kind": "other"}
        )
        assert not run().from_cache
    assert run().from_cache


@pytest.mark.prove
def test_a_damaged_cache_is_made_again() -> None:
    first = run(alpaca(20))
    folder, fingerprint = first.train.folder, first.train.fingerprint
    del first  # a mapped file must not be cut off under its reader
    for name in ("input_ids.npy", "lengths.npy", "row_text.npy"):
        content = (folder / name).read_bytes()
        for data in (b"", content[: len(content) // 2], content[:-4]):
            (folder / name).write_bytes(data)
            again = run()
            assert not again.from_cache
            assert again.train.fingerprint == fingerprint
            del again
    content = bytearray((folder / "targets.npy").read_bytes())
    content[-7] ^= 1
    (folder / "targets.npy").write_bytes(content)
    assert not run().from_cache
    (folder.parent / "meta.json").write_text("{")
    assert not run().from_cache
    assert len(list(Path("cache/encoded").iterdir())) == 1


def test_samples_read_what_was_written(tmp_path: Path) -> None:
    wanted = [
        Sample(np.arange(3), np.array([1, NO_TARGET, NO_TARGET]), "ä.jsonl:1", 0),
        Sample(np.array([7]), np.array([NO_TARGET]), "ä.jsonl:1", 0, 1),
        Sample(np.arange(50), np.arange(50), "", 1),
        Sample(np.arange(2), np.array([1, NO_TARGET]), "b.jsonl:2", 2),
    ]
    writer = SampleWriter(tmp_path / "s")
    for examples in ((0, 1), (2,)):  # two buffers, each with a count of its own
        encoded = SampleBuffer()
        for example in examples:
            encoded.add([sample for sample in wanted if sample.example == example], example + 2**63)
        writer.append(encoded)
    writer.close()
    samples = Samples(tmp_path / "s")
    assert samples.lengths.tolist() == [3, 1, 50, 2]
    assert samples.trained.tolist() == [1, 0, 50, 1]
    assert samples.groups.tolist() == [0, 1, 0, 0]
    assert samples.first_samples.tolist() == [0, 2, 3]
    assert samples.prompt_keys.tolist() == [2**63, 2**63 + 1, 2**63 + 2]
    assert [samples.row(example) for example in range(samples.examples)] == ["ä.jsonl:1", "", "b.jsonl:2"]
    for found, sample in zip(samples, wanted, strict=True):
        assert found.input_ids.tolist() == sample.input_ids.tolist()
        assert found.targets.tolist() == sample.targets.tolist()
        assert (found.row, found.example, found.group) == (sample.row, sample.example, sample.group)
    with pytest.raises(IndexError):
        samples[4]
    assert samples[-1].row == "b.jsonl:2"
    assert samples.members_of([2, 0]) == [3, 0, 1]
    assert samples.last_samples.tolist() == [1, 2, 3]
    assert samples.by_example(samples.trained).tolist() == [1, 50, 1]
    with pytest.raises(DamagedCache):
        Samples(tmp_path / "nowhere")


def test_the_split_does_not_depend_on_anything_but_the_prompt() -> None:
    assert [module.is_held_out(f"prompt {n}", 0.3) for n in range(12)].count(True) in range(1, 8)
    assert all(module.is_held_out(f"p{n}", 0.3) for n in range(500) if module.is_held_out(f"p{n}", 0.1))
