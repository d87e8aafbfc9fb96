"""The configuration: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier import component, config
from luthier.data.recognise import format_of
from luthier.errors import UserError
from tests.helpers.configs import load, refusal

SMALL = "model: org/name\ndata: train.jsonl\noutput_dir: runs/mine\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What is accepted


def test_the_shortest_file_gets_the_defaults_of_lora() -> None:
    run = load(SMALL)
    assert (run.model.path, run.data.train[0].path, run.tuning.kind, run.objective.kind) == (
        "org/name",
        "train.jsonl",
        "lora",
        "sft",
    )
    assert (run.training.learning_rate, run.training.weight_decay, run.training.num_train_epochs) == (2e-4, 0.0, 3.0)
    assert run.training.eval_steps is None


def test_all_weights_and_held_out_data_have_their_own_defaults() -> None:
    run = load(SMALL + "tuning: full\n", "data.eval=0.05")
    assert (run.training.learning_rate, run.training.weight_decay, run.training.eval_steps) == (2e-5, 0.01, 0.1)


@pytest.mark.parametrize(
    ("terms", "defaults"),
    [("dpo}, {kind: orpo, weight: 0.3", (5e-6, 1.0, 0.1)), ("sft}, {kind: z_loss, weight: 0.1", (2e-4, 3.0, 0.03))],
)
def test_a_sum_takes_the_most_careful_defaults_of_its_terms(terms: str, defaults: tuple[float, ...]) -> None:
    training = load(SMALL + f"objective: {{kind: weighted, terms: [{{kind: {terms}}}]}}\n").training
    assert (training.learning_rate, training.num_train_epochs, training.warmup_steps) == defaults


def test_a_bare_string_means_the_same_as_its_map() -> None:
    long = """
model: {path: org/name, quantization: {kind: nf4}}
data: {train: [{path: train.jsonl}], eval: [{path: test.jsonl}]}
tuning: {kind: lora}
objective: {kind: sft}
report_to: [tensorboard]
output_dir: runs/mine
"""
    short = """
model: {path: org/name, quantization: nf4}
data: {train: train.jsonl, eval: test.jsonl}
tuning: lora
report_to: tensorboard
output_dir: runs/mine
"""
    assert load(long) == load(short)


def test_several_files_are_a_list() -> None:
    run = load("model: m\ndata: [a.jsonl, {path: b.csv, format: alpaca}]\noutput_dir: o\n")
    expected = [("a.jsonl", "auto"), ("b.csv", format_of("alpaca"))]
    assert [(file.path, file.format) for file in run.data.train] == expected
    assert [config.data_file(text) for text in ("a.jsonl", "{path: b.csv, format: alpaca}")] == list(run.data.train)
    with pytest.raises(UserError, match='frmat: unknown key; did you mean "format"'):
        config.data_file("{path: b.csv, frmat: alpaca}")


@pytest.mark.parametrize(
    ("written", "value"), [("1e-5", 1e-5), ("1E-5", 1e-5), ("0.00001", 1e-5), ("1.e-5", 1e-5), ("1", 1.0)]
)
def test_a_learning_rate_may_be_written_as_people_write_it(written: str, value: float) -> None:
    assert load(SMALL, f"learning_rate={written}").training.learning_rate == value
    assert load(SMALL + f"training: {{learning_rate: {written}}}\n").training.learning_rate == value


@pytest.mark.parametrize("path", ["no", "on", "yes", "1:30", "off", "y"])
def test_words_that_yaml_1_1_would_convert_stay_text(path: str) -> None:
    assert load(f"model: {path}\ndata: train.jsonl\noutput_dir: {path}\n").output_dir == path


def test_a_date_stays_the_text_that_was_written() -> None:
    assert load("model: m\ndata: train.jsonl\noutput_dir: 2026-11-21\n").output_dir == "2026-11-21"


def test_the_resolved_file_gives_the_same_run() -> None:
    run = load(
        SMALL,
        "r=8",
        "learning_rate=1e-5",
        "data.eval=0.1",
        "quantization=int8",
        "sample_prompts=[hello, 'no', '1e-5']",
        "report_to=[tensorboard, wandb]",
        "max_grad_norm=null",
    )
    assert load(run.resolved_yaml()) == run


# What is refused


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("tranining: {}", ("mine.yaml:4", "tranining", "unknown key", 'did you mean "training"?')),
        ("training: {learnig_rate: 1e-4}", ("mine.yaml:4", "training.learnig_rate", 'did you mean "learning_rate"?')),
        ("tuning: {kind: lora, lora_alfa: 3}", ("mine.yaml:4", "tuning.lora_alfa", 'did you mean "lora_alpha"?')),
        ("tuning: lorra", ("mine.yaml:4", "'lorra'", "full, lora", 'did you mean "lora"?')),
        ("tuning: {kind: full, r: 8}", ("mine.yaml:4", "tuning.r", "unknown key")),
        ("training:\n  seed: 1", ("mine.yaml:5", "training.seed", "unknown key")),
        ("objective: dppo", ("mine.yaml:4", "'dppo'")),
    ],
)
def test_an_unknown_key_names_line_and_nearest_key(line: str, parts: tuple[str, ...]) -> None:
    message = refusal(SMALL + line + "\n")
    assert all(part in message for part in parts), message


def test_a_duplicate_key_names_its_second_line() -> None:
    message = refusal(SMALL + "seed: 1\nseed: 2\n")
    assert "mine.yaml:5" in message
    assert "'seed'" in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("learning_rate=fast", "training.learning_rate"),
        ("learning_rate=-1", "training.learning_rate"),
        ("learning_rate=.nan", "training.learning_rate"),
        ("learning_rate=.inf", "training.learning_rate"),
        ("learning_rate='1e-4'", "training.learning_rate"),
        ("learning_rate=true", "training.learning_rate"),
        ("learning_rate=[1e-4]", "training.learning_rate"),
        ("num_train_epochs=0", "training.num_train_epochs"),
        ("max_steps=0", "training.max_steps"),
        ("max_steps=2.5", "training.max_steps"),
        ("max_steps=1e3", "training.max_steps"),
        ("global_batch_size=0", "training.global_batch_size"),
        ("global_batch_size=true", "training.global_batch_size"),
        ("global_batch_size='16'", "training.global_batch_size"),
        ("data.eval=1.5", "data.eval"),
        ("data.eval=0", "data.eval"),
        ("data.eval=5", "data.eval"),
        ("warmup_steps=-1", "training.warmup_steps"),
        ("warmup_steps=1.5", "training.warmup_steps"),
        ("dtype=bf16", "model.dtype"),
        ("r=0", "tuning.r"),
        ("r=16.0", "tuning.r"),
        ("lora_dropout=1", "tuning.lora_dropout"),
        ("seed=1.0", "seed"),
        ("seed=null", "seed"),
        ("deterministic=yes", "training.deterministic"),
        ("deterministic=1", "training.deterministic"),
        ("load_best_checkpoint=no", "training.load_best_checkpoint"),
        ("optim=adam", "training.optim"),
        ("max_grad_norm=0", "training.max_grad_norm"),
        ("adam_beta1=1", "training.optim.adam_beta1"),
        ("save_total_limit=1", "training.save_total_limit"),
        ("report_to=tensorbord", "report_to"),
        ("data=[]", "data.train"),
        ("data.train=[]", "data.train"),
        ("model=null", "model"),
        ("model=[]", "model"),
        ("model.path=3", "model.path"),
        ("output_dir=3", "output_dir"),
        ("output_dir=null", "output_dir"),
        ("max_length=1", "data.max_length"),
        ("on_bad_row=skip", "data.on_bad_row"),
        ("training=3", "training"),
        ("tuning=3", "tuning"),
        ("tuning=[lora]", "tuning"),
        ("sample_prompts=hello", "training.sample_prompts"),
        ("double_quant=1", "double_quant"),
        ("distributed=fsdp", "distributed"),
        ("eval_steps=0", "training.eval_steps"),
        ("target_modules=3", "tuning.target_modules"),
        ("activation_checkpointing=maybe", "activation_checkpointing"),
        ("output_dir=''", "output_dir"),
        ("model=''", "model.path"),
        ("data=''", "data.train"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, key: str) -> None:
    message = refusal(SMALL, override)
    assert key in message, message
    assert "command line" in message, message


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("tickets.csv", "runs/tickets"),
        ("a/b.jsonl", "runs/b"),
        ("hf:org/chats", "runs/chats"),
        ("'*.jsonl'", "runs/mine"),
    ],
)
def test_the_default_folder_is_named_after_the_data(data: str, folder: str) -> None:
    assert load(f"model: m\ndata: {data}\n").output_dir == folder
    assert load(f"model: m\ndata: {data}\noutput_dir: elsewhere\n").output_dir == "elsewhere"


def test_all_problems_are_listed_at_once() -> None:
    message = refusal("data: train.jsonl\ntraining: {learning_rate: x, max_steps: -1}\nfoo: 1\n")
    for part in (
        "model: missing",
        "mine.yaml:2: training.learning_rate",
        "mine.yaml:2: training.max_steps",
        "mine.yaml:3: foo",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("model_name_or_path: x", "model.path"),
        ("per_device_train_batch_size: 4", "global_batch_size: 4"),
        ("lora_rank: 8", "tuning.r"),
        ("cutoff_len: 512", "data.max_length"),
        ("template: x", "data.chat_template"),
        ("base_model: x", "write model"),
        ("packing: true", "where the model is proven to allow it"),
        ("bf16: true", "dtype: bfloat16"),
        ("gradient_checkpointing: true", "activation_checkpointing"),
        ("training: {warmup_ratio: 0.1}", "warmup_steps"),
        ("trust_remote_code: true", "--trust-remote-code"),
        ("training: {per_device_train_batch_size: 4, gradient_accumulation_steps: 4}", "global_batch_size: 16"),
    ],
)
def test_another_tools_name_is_answered_with_ours(key: str, ours: str) -> None:
    message = refusal(SMALL + key + "\n")
    assert ours in message, message
    assert "mine.yaml:4" in message


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("eval_steps=10",), "data.eval"),
        (("early_stopping_patience=2",), "data.eval"),
        (("load_best_checkpoint=true",), "data.eval"),
        (("quantization=nf4", "tuning=full"), "tuning=lora"),
        (("max_steps=5", "warmup_steps=5"), "warmup_steps"),
        (("lr_scheduler_type=constant", "warmup_steps=10"), "constant_with_warmup"),
    ],
)
def test_wrong_combinations_are_refused_with_the_remedy(overrides: tuple[str, ...], part: str) -> None:
    message = refusal(SMALL, *overrides)
    assert part in message
    assert "fix: " in message


# Overrides


def test_an_override_needs_only_its_last_word() -> None:
    run = load(SMALL, "learning_rate=1e-4", "r=8", "max_length=512", "revision=main", "seed=7")
    assert (
        run.training.learning_rate,
        run.tuning.model_dump()["r"],
        run.data.max_length,
        run.model.revision,
        run.seed,
    ) == (1e-4, 8, 512, "main", 7)


def test_an_override_reaches_into_a_component_that_was_a_bare_string() -> None:
    run = load(SMALL, "model.quantization=nf4", "double_quant=false")
    assert run.model.quantization is not None
    assert run.model.quantization.model_dump() == {"kind": "nf4", "double_quant": False, "compute_dtype": "auto"}
    assert load(SMALL + "tuning: full\n", "tuning.kind=lora", "tuning.r=4").tuning.model_dump()["r"] == 4


def test_an_override_of_a_bare_model_keeps_its_path() -> None:
    assert load(SMALL, "model.dtype=float32").model == config.ModelConfig(path="org/name", dtype="float32")


def test_an_override_reaches_into_a_file_but_not_into_a_list_of_files() -> None:
    alpaca = config.DataFile(path="train.jsonl", format=format_of("alpaca"))
    assert load(SMALL, "data.train.format=alpaca").data.train == (alpaca,)
    message = refusal("model: m\ndata: [a.jsonl, b.jsonl]\noutput_dir: o\n", "data.train.format=alpaca")
    assert "write data.train as a whole" in message


def test_no_file_is_needed() -> None:
    assert config.load(None, ["model=org/name", "data=train.jsonl", "output_dir=o"]).model.path == "org/name"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("learning_rate", "key=value"),
        ("=3", "key=value"),
        ("learnig_rate=3", 'did you mean "learning_rate"?'),
        ("lr=3", "training.learning_rate"),
        ("lora_rank=8", "tuning.r"),
        ("training.learning_rat=3", "learning_rate"),
        ("r=[", "no YAML"),
        ("seed=a: b: c", "no YAML"),
        ("a.b.c=1", "a"),
        ("..=1", "command line"),
        ("seed.x=1", "seed"),
        ("r=", "tuning.r"),
        ("sample_prompts=!!python/object:os.system x", "command line"),
    ],
)
def test_a_wrong_override_is_refused(override: str, part: str) -> None:
    message = refusal(SMALL, override)
    assert part in message, message


def test_the_same_override_twice_is_refused_or_the_last_one_holds() -> None:
    assert load(SMALL, "seed=1", "seed=2").seed == 2


# Files that are no configuration


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"- a\n- b\n", "at the top"),
        (b"just text\n", "at the top"),
        (b"3\n", "at the top"),
        (b"model: x\n\tdata: y\n", "mine.yaml:2"),
        (b"training:\n  seed: 1\n   max_steps: 3\n", "mine.yaml:3"),
        (b"model: [a\n", "mine.yaml:"),
        (b"model: \xff\xfe\n", "not UTF-8"),
        ("model: x\n".encode("utf-16"), "not UTF-8"),
        (b"model: x\n---\nmodel: y\n", "mine.yaml"),
        (b"model: \x00\n", "mine.yaml"),
        (b"1: x\n", "no string"),
        (b"model: *nowhere\n", "mine.yaml:1"),
        (b"model: !!python/object/apply:os.system [ls]\n", "mine.yaml"),
        (b"? {a: b}\n: c\n", "mine.yaml"),
        (b"model: !custom x\n", "mine.yaml"),
        (b"<<: [1]\n", "mine.yaml"),
        (b"model: &a [*a]\n", "mine.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(write(tmp_path, content))
    assert part in str(caught.value)


def test_no_file_a_folder_and_a_huge_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="folder"):
        config.load(tmp_path)
    with pytest.raises(UserError, match="characters"):
        config.load(write(tmp_path, SMALL + "# " + "x" * 1_000_000))


def test_aliases_are_bounded_in_what_they_expand_to(tmp_path: Path) -> None:
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    with pytest.raises(UserError, match="aliases"):
        config.load(write(tmp_path, "a0: &a0 [x]\n" + "\n".join(levels) + "\n"))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        config.load(write(tmp_path, "model: " + "[" * 500 + "]" * 500 + "\n"))


def test_an_anchor_is_fine_where_it_is_used_honestly() -> None:
    run = load("model: m\ndata: {train: [&f {path: a.jsonl, format: alpaca}], eval: [*f]}\noutput_dir: o\n")
    assert run.data.train == run.data.eval


@pytest.mark.parametrize(
    "kind", [":Class", ".a:Class", "no_such_package:Class", "json.no_such_module:Class", "json:no"]
)
def test_a_component_that_is_not_there(kind: str) -> None:
    with pytest.raises(UserError, match=r"no module|no class"):
        component.load("tuning", kind)
