"""Rows of a better and a worse answer, as an objective on pairs gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data.dataset.samples import Given
from luthier.types import NO_TARGET
from tests.data.dataset.test_prepare import run
from tests.helpers import tokenizers
from tests.helpers.tiny_models import CHATML


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_rows_of_a_better_and_a_worse_answer_are_two_samples_of_one_group(streaming: str) -> None:
    rows = [
        {"system": "Be kind.", "prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": f"No {number}."}
        for number in range(5)
    ]
    found = run(rows, "objective=tests.helpers.split_rows:Preferred", f"streaming={streaming}")
    assert found.system == "Be kind."
    assert found.train.examples == found.ledger.rows_trained == 5
    assert [(sample.example, sample.group) for sample in found.train] == [(n, 0) for n in range(5) for _ in range(2)]
    assert found.ledger.rows_split == 0
    tokenizer = tokenizers.chatml()
    texts = [tokenizer.decode(sample.input_ids) for sample in found.train][:2]
    assert "0!" in texts[0]
    assert "No 0." in texts[1]


SUM = "{kind: weighted, terms: [{kind: sft}, {kind: z_loss, weight: 0.1}]}"


@pytest.mark.parametrize(("objective", "file"), [("dpo", "_pairs.py"), ("dpo", "dpo.py"), (SUM, "sft.py")])
def test_rows_are_encoded_anew_where_the_code_of_an_objective_changed(
    objective: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the class that it is built on, and of a term."""
    pairs = [{"prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": f"No {number}."} for number in range(3)]
    rows = [{"instruction": row["prompt"], "output": row["chosen"]} for row in pairs] if objective == SUM else pairs
    assert not run(rows, f"objective={objective}").from_cache
    assert run(rows, f"objective={objective}").from_cache
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b" " * (self.name == file))
    assert not run(rows, f"objective={objective}").from_cache


def test_a_row_of_which_one_answer_breaks_a_law_is_refused_whole() -> None:
    """Also where the objective takes the others only: a row is used, or it is not."""
    Path("loses.jinja").write_text(CHATML.replace("message['content']", "message['content'] | replace('Perhaps', '')"))
    rows = [{"prompt": f"Say {number}.", "answers": ["Yes.", "Perhaps so.", "No."]} for number in range(2)]
    rows += [{"prompt": "Say 3.", "answers": ["Yes.", "So.", "No."]}]
    keys = ["objective=tests.helpers.split_rows:Preferred", "on_bad_row=drop", "data.chat_template=loses.jinja"]
    found = run(rows, *keys)
    assert found.train.examples == found.ledger.rows_trained == 1
    assert len(found.train) == 2
    assert found.ledger.laws
    assert sum(map(len, found.ledger.dropped.values())) == 2


def test_of_pairs_the_better_answers_can_be_asked_for() -> None:
    rows = [{"prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": f"No {number}."} for number in range(5)]
    pairs = run(rows, "objective=dpo").train
    assert pairs.roles.tolist() == [0, 1] * 5
    better = Given(pairs)
    assert (len(better), better.examples) == (5, 5)
    assert [list(better[at].input_ids) for at in range(5)] == [list(pairs[2 * at].input_ids) for at in range(5)]
    assert [better.row(at) for at in range(5)] == [pairs.row(at) for at in range(5)]
    assert better.lengths.tolist() == [len(sample) for sample in better]
    assert better.members_of([3, 1]) == [3, 1]


def test_a_request_carries_no_loss_also_where_the_assistant_speaks_in_it() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Go"},
    ]
    row = {"prompt": turns, "chosen": "good", "rejected": "bad"}
    chosen, rejected = run([row], "objective=orpo").train
    tokenizer = tokenizers.chatml()
    for sample, said in ((chosen, "good"), (rejected, "bad")):
        trained = tokenizer.decode(sample.targets[sample.targets != NO_TARGET])
        assert said in trained
        assert "Hello" not in trained
