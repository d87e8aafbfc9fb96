"""What is said of a wrong configuration: everything at once, in the order of the file, with a line to paste."""

from __future__ import annotations

import pytest

from luthier import config
from luthier.config_yaml import parse_yaml
from luthier.errors import UserError

SMALL = "model: org/name\ndata: train.jsonl\n"
TWO_FILES = "model: m\ndata:\n  train:\n  - a.jsonl\n  - path: b.jsonl\n    weight: 2\n"


def load(text: str, *overrides: str) -> config.RunConfig:
    document = parse_yaml(text, "mine.yaml")
    for override in overrides:
        config.apply_override(document, override)
    return config.build(document)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_all_problems_come_at_once_in_the_order_of_the_file_and_then_the_command_line() -> None:
    text = (
        "tranining: {}\nbase_model: org/name\ndata:\n  cutoff_len: 512\n  train:\n  - path: a.jsonl\n    fromat: alpaca\n"
        "tuning: {kind: lorra}\ntraining:\n  learning_rate: fast\n"
    )
    *lines, fix = refusal(text, "seed=x").splitlines()
    places = ["mine.yaml:1: tranining", "mine.yaml:2: base_model", "mine.yaml:4: cutoff_len"]
    places += ["mine.yaml:7: data.train.0.fromat", "mine.yaml:8: tuning.kind", "mine.yaml:10: training.learning_rate"]
    places += ["command line: seed"]
    assert [line[: len(place)] for line, place in zip(lines, places, strict=True)] == places
    assert fix == "fix: luthier explain KEY says what a key takes"


def test_what_another_tools_key_stands_for_is_not_missing_as_well() -> None:
    message = refusal("base_model: org/name\ndatasets: train.jsonl\n")
    assert "missing" not in message
    assert message.count("another tool's name") == 2
    assert "data: missing" in refusal("model: m\ncutoff_len: 8\n")
    assert "fix" not in message  # each line says its own


def test_a_kind_that_is_not_there_is_one_of_the_problems() -> None:
    message = refusal("model: m\ndata: d\nobjective: dppo\nfoo: 1\n")
    assert "mine.yaml:3: objective.kind: there is no 'dppo'" in message
    assert "mine.yaml:4: foo: unknown key" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TWO_FILES, 6),
        ("model: m\ndata:\n- a.jsonl\n- path: b.jsonl\n  weight: 2\n", 5),
        ("model: m\ndata:\n  train:\n    path: b.jsonl\n    weight: 2\n", 5),
        ("model: m\ndata:\n  train: a.jsonl\n  eval:\n  - path: b.jsonl\n    weight: 2\n", 6),
    ],
)
def test_a_weight_that_nothing_asks_for_is_refused(text: str, line: int) -> None:
    message = refusal(text)
    assert message.startswith(f"mine.yaml:{line}: weight: 2 of b.jsonl, which is not mixed")
    assert "leave weight out" in message
    if line == 6 and "eval" not in text:
        assert "mixing: first_exhausted" in message


def test_a_weight_is_fine_where_files_are_mixed_and_where_it_says_nothing() -> None:
    mixed = load(TWO_FILES + "  mixing: first_exhausted\n")
    assert [file.weight for file in mixed.data.train] == [1.0, 2.0]
    assert load(mixed.resolved_yaml()) == mixed
    plain = load(TWO_FILES.replace("weight: 2", "weight: 1"))
    assert load(plain.resolved_yaml()) == plain


def test_wrong_combinations_come_at_once() -> None:
    message = refusal(SMALL + "training:\n  eval_steps: 5\n  load_best_checkpoint: true\n")
    assert message.index("mine.yaml:4: training.eval_steps") < message.index(
        "mine.yaml:5: training.load_best_checkpoint"
    )
    assert message.count("fix: ") == 2


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("lora_rank=3", "fix: r=3"),
        ("lr=1e-4", "fix: learning_rate=1e-4"),
        ("cutoff_len=512", "fix: max_length=512"),
        ("base_model=org/other", "fix: model=org/other"),
        ("dataset=a.jsonl", "fix: train=a.jsonl"),
        ("optimizer=adamw_torch", "fix: write training.optim"),  # no value of ours
        ("evaluation_strategy=epoch", "fix: write training.eval_steps"),
        ("packing=true", "leave it out"),
        ("per_device_train_batch_size=4", "fix: write global_batch_size: the product"),
        ("weight=3", "fix: data.train.weight=3"),
        ("num_samples=3", "fix: data.train.num_samples=3"),
    ],
)
def test_the_fix_of_a_wrong_override_can_be_pasted(override: str, fix: str) -> None:
    message = refusal(SMALL, override)
    assert fix in message
    assert "did you mean" not in message


def test_a_key_of_a_file_among_several_is_written_with_the_file() -> None:
    message = refusal("model: m\ndata: [a.jsonl, b.jsonl]\n", "weight=3")
    assert "fix: data.train=[{path: a.jsonl, weight: 3}, ...]" in message


@pytest.mark.parametrize(
    "fix", ["r=3", "learning_rate=1e-4", "model=org/other", "train=a.jsonl", "data.train.num_samples=3"]
)
def test_what_is_proposed_is_accepted(fix: str) -> None:
    assert load(SMALL, fix)


def test_the_folder_has_a_name_whatever_else_is_wrong() -> None:
    assert "output_dir" not in refusal("model: m\n")
    assert load("model: m\ndata: {train: chats.jsonl}\n").output_dir == "runs/chats"
