"""What is said of a wrong configuration: everything at once, in the order of the file, with a line to paste."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.config.keys import explain
from tests.helpers.configs import load, refusal

SMALL = "model: org/name\ndata: train.jsonl\n"
TWO_FILES = "model: m\ndata:\n  train:\n  - a.jsonl\n  - path: b.jsonl\n    weight: 2\n"


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
    assert fix == "fix: luthier explain tuning"


@pytest.mark.parametrize(
    ("override", "expected", "explained"),
    [
        ("r=0", "expected at least 1", "tuning.r"),
        ("lora_dropout=1.5", "expected below 1", "tuning.lora_dropout"),
        ("init_lora_weights=pizza", "or a text of the pattern '^pissa_niter_", "tuning.init_lora_weights"),
        ("data.train=[{path: a, format: {kind: alpaca, input: 3}}]", "wrong value, found 3", "data.train.format.input"),
        ("objective={kind: weighted, terms: [{kind: sft, weight: -1}]}", "at least 0.000001", "objective.terms"),
        ("objective={kind: weighted, terms: [{kind: z_loss, form: q}]}", "expected 'logsumexp'", "objective.form"),
        ("data.eval=[{path: 3}]", "wrong value, found 3", "data.train.path"),
        ("rank_pattern={q: x}", "a whole number", "tuning.rank_pattern"),
        ("data.train=[{path: a, format: {kind: messages, roles: {x: y}}}]", "found 'y'", "data.train.format.roles"),
    ],
)
def test_a_wrong_value_is_met_with_the_key_that_explains_it(override: str, expected: str, explained: str) -> None:
    message = refusal(SMALL, override)
    assert expected in message
    assert message.endswith(f"fix: luthier explain {explained}")
    assert explain(explained)


@pytest.mark.parametrize(("override", "said"), [("deepspeed=ds.json", "torchrun"), ("flash_attn=fa2", "fastest")])
def test_what_is_not_needed_here_is_answered(override: str, said: str) -> None:
    assert said in refusal(SMALL, override)


def test_what_is_missing_is_explained_too() -> None:
    message = refusal(SMALL, "data.eval=[{format: alpaca}]")
    assert "data.eval.0.path: missing; luthier explain data.train.path says" in message


def test_what_another_tools_key_stands_for_is_not_missing_as_well() -> None:
    message = refusal("base_model: org/name\ndatasets: train.jsonl\n")
    assert "missing" not in message
    assert message.count("another tool's name") == 2
    assert "data: missing" in refusal("model: m\ncutoff_len: 8\n")
    assert message.endswith("fix: as a whole, in luthier's words:\n\nmodel: org/name\ndata: train.jsonl\n")


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
        ("dataset=a.jsonl", "fix: data.train=a.jsonl"),
        ("optimizer=adamw_torch", "fix: optim=adamw"),
        ("evaluation_strategy=epoch", "fix: luthier train mine.yaml eval=0.05 eval_steps=0.34"),
        ("evaluation_strategy=no", "leave it and eval_steps out"),
        ("lora_target=q_proj,v_proj", "fix: target_modules=[q_proj,v_proj]"),
        ("packing=true", "leave it out"),
        ("per_device_train_batch_size=4", "fix: global_batch_size=4"),
        ("gradient_accumulation_steps=2", "fix: global_batch_size=16"),
        ("bnb_4bit_compute_dtype=torch.float16", "fix: quantization=nf4 compute_dtype=float16"),
        ("warmup_ratio=0.03", "fix: warmup_steps=0.03"),
        ("device_map=auto", "leave it out"),
        ("num_samples=3", "fix: data.train.num_samples=3"),
    ],
)
def test_the_fix_of_a_wrong_override_can_be_pasted(override: str, fix: str) -> None:
    message = refusal(SMALL, override)
    assert fix in message
    assert "did you mean" not in message


SEVERAL = "model: m\ndata: [a.jsonl, {path: 'b, c.jsonl', split: dev}]\n"
WHOLE = "data.train=[{path: a.jsonl, %s}, {path: 'b, c.jsonl', split: dev}]"


@pytest.mark.parametrize(
    ("text", "override", "fix", "got"),
    [
        (SEVERAL, "format=alpaca", [WHOLE % "format: alpaca"], "alpaca"),
        (SEVERAL, "weight=3", [WHOLE % "weight: 3", "data.mixing=first_exhausted"], 3.0),
        (
            "model: m\ndata: {train: [a.jsonl, b.jsonl], mixing: all_exhausted}\n",
            "weight=3",
            ["data.train=[{path: a.jsonl, weight: 3}, b.jsonl]"],
            3.0,
        ),
        (
            "model: m\ndata: {train: [{path: a.jsonl}]}\n",
            "split=dev",
            ["data.train=[{path: a.jsonl, split: dev}]"],
            "dev",
        ),
    ],
)
def test_a_key_of_a_file_among_several_is_written_with_all_files(
    text: str, override: str, fix: list[str], got: object
) -> None:
    assert refusal(text, override).endswith("fix: " + " ".join(fix))
    first, *others = load(text, *fix).data.train
    value = getattr(first, override.partition("=")[0])
    assert getattr(value, "kind", value) == got
    assert [file.path for file in others] == [file.path for file in load(text).data.train[1:]]


def test_a_weight_of_the_only_file_has_nothing_to_be_a_share_of() -> None:
    message = refusal(SMALL, "weight=2")
    assert "fix: leave weight out; it needs several files and data.mixing: data.train=[{path: train.jsonl, " in message
    both = message.partition("data.mixing: ")[2].replace("] ", "]\n").splitlines()
    assert load(SMALL, *both).data.mixing == "first_exhausted"


def test_an_override_reaches_into_a_list_of_files_whose_lines_stay_known() -> None:
    text = "model: m\ndata:\n- a.jsonl\n- path: b.jsonl\n  weight: 2\n"
    assert load(text.replace("weight: 2", "split: dev"), "max_length=9").data.train[1].split == "dev"
    assert refusal(text, "data.max_length=9").startswith("mine.yaml:5: weight: 2 of b.jsonl")


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        (SMALL + "learning_rate: 1e-4\n", "learning_rate", '"training.learning_rate"'),
        (SMALL + "lora_alpha: 16\n", "lora_alpha", '"tuning.lora_alpha"'),
        (SMALL + "tuning: {max_length: 16}\n", "tuning.max_length", '"data.max_length"'),
        (SMALL + "training: {seed: 1}\n", "training.seed", '"seed" at the top'),
        (SMALL + "training: {sede: 1}\n", "training.sede", '"seed" at the top'),
        (SMALL + "split: dev\n", "split", '"data.train.split" or "data.eval.split"'),
        ("model: m\ndata: {train: [a.jsonl, {path: b.jsonl, mixing: x}]}\n", "data.train.1.mixing", '"data.mixing"'),
        ("model: m\ndata: {train: [{path: b.jsonl, fromat: x}]}\n", "data.train.0.fromat", '"format"'),
        (
            SMALL + "objective: {kind: weighted, terms: [{kind: sft}, {kind: z_loss, from: largest}]}\n",
            "objective.terms.1.from",
            '"form"',
        ),
    ],
)
def test_the_key_that_was_meant_is_another_one_with_its_place(text: str, place: str, meant: str) -> None:
    assert f": {place}: unknown key; did you mean {meant}?" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "model: {dtype: auto}\nmodel_name_or_path: x\ndata: d\n",
        "model: {dtype: auto}\nbase_model: x\ndata: d\n",
        "model: m\ndata: {max_length: 8}\ndataset: x\n",
    ],
)
def test_a_part_that_another_tools_key_stands_for_is_not_missing_as_well(text: str) -> None:
    message = refusal(text)
    assert "another tool's name" in message
    assert "missing" not in message


OF = SMALL + "objective: {kind: weighted, terms: %s}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL + "training: [1]\n", ["training: wrong value, found [1], expected a map"]),
        ("model: 3\ndata: 3\n", ["found 3, expected a path, or a map", "expected a path, a list of files, or a map"]),
        (OF % "[sft]", ["objective.terms.0: wrong value, found 'sft', expected a map"]),
        (OF % "[{kind: stf}]", ["objective.terms.0.kind: there is no 'stf', expected one of", 'did you mean "sft"?']),
        (
            OF % "[{kind: sft}, {kind: z_loss, form: bad, rank: 1}, {kind: router_balance, over: all}]",
            [
                "objective.terms.1.form: wrong value, found 'bad', expected 'logsumexp' or 'largest'",
                "objective.terms.1.rank: unknown key",
                "objective.terms.2.over: wrong value, found 'all', expected 'document' or 'step'",
            ],
        ),
        (
            OF % "[{kind: sft}, {kind: sft}]",
            ["found [{'kind': 'sft'}, {'kind': 'sft'}], expected each kind once; sft is"],
        ),
    ],
)
def test_the_words_are_ours(text: str, said: list[str]) -> None:
    message = refusal(text)
    assert all(part in message for part in said), message
    for word in ("Value error", "dictionary", "instance of", "Extra inputs", "Input should", "({"):
        assert word not in message


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("router_balance", {"sft": 1.0, "router_balance": 0.01}),
        ("{kind: z_loss, form: largest}", {"sft": 1.0, "z_loss": 1e-4}),
        (
            "{kind: weighted, gradient_shares: true, terms: [{kind: z_loss, weight: 0.3}, {kind: router_balance}]}",
            {"sft": 1.0, "z_loss": 0.3, "router_balance": 1.0},
        ),
    ],
)
def test_an_objective_that_says_nothing_of_the_answers_is_refused_alone(
    objective: str, weights: dict[str, float]
) -> None:
    message = refusal(f"{SMALL}objective: {objective}\n")
    assert message.startswith("mine.yaml:3: ")
    assert "nothing would be learned from the answers" in message
    mended: Any = load(SMALL, message.partition("fix: ")[2]).objective
    assert {term.kind: term.weight for term in mended.terms} == weights
    if "largest" in objective:
        assert mended.terms[1].form == "largest"
    assert mended.gradient_shares == ("gradient_shares" in objective)


@pytest.mark.parametrize(
    "fix", ["r=3", "learning_rate=1e-4", "model=org/other", "data.train=a.jsonl", "data.train.num_samples=3"]
)
def test_what_is_proposed_is_accepted(fix: str) -> None:
    assert load(SMALL, fix)


def test_the_folder_has_a_name_whatever_else_is_wrong() -> None:
    assert "output_dir" not in refusal("model: m\n")
    assert load("model: m\ndata: {train: chats.jsonl}\n").output_dir == "runs/chats"
