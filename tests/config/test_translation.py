"""Whole configurations of other tools: every key is answered, and what is proposed is a configuration that works."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from luthier import config
from luthier.cli import main
from luthier.config import RunConfig
from luthier.config.foreign_keys import answer, generic
from luthier.config.foreign_values import BY_VALUE
from luthier.config.keys import explain
from luthier.config.other_tools import NOT_NEEDED, RENAMED
from tests.helpers.configs import load, refusal

LLAMA_FACTORY = (
    "--stage sft --model_name_or_path path-to-yuan --do_train --dataset alpaca_en --finetuning_type full "
    "--output_dir yuan2_2B_full --overwrite_cache --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
    "--gradient_accumulation_steps 4 --preprocessing_num_workers 16 --lr_scheduler_type cosine --logging_steps 10 "
    "--save_steps 10000 --learning_rate 5e-5 --max_grad_norm 0.5 --num_train_epochs 3 --evaluation_strategy no --bf16 "
    "--deepspeed ./zero2.json --template yuan --overwrite_output_dir --cutoff_len 2048 --sft_packing "
    "--gradient_checkpointing True"
)
QLORA_IN_IT = (
    "--stage sft --model_name_or_path yuan --dataset alpaca_zh,own --dataset_dir registry --finetuning_type lora "
    "--lora_target q_proj,k_proj,v_proj --lora_rank 64 --quantization_bit 4 --template gemma --max_steps -1"
)
TRL = (
    "--model_name meta-llama/Llama-2-7b-hf --dataset_name timdettmers/openassistant-guanaco --load_in_4bit --use_peft "
    "--batch_size 4 --gradient_accumulation_steps 2 --log_with wandb"
)
LLAMA_RECIPES = (
    "--use_peft --peft_method lora --quantization --model_name ../models_hf/7B --output_dir ../models_ft/7B-peft "
    "--batch_size_training 2 --gradient_accumulation_steps 2 --dataset train.jsonl"
)
QLORA = (
    "--model_name_or_path huggyllama/llama-7b --output_dir ./output/guanaco-7b --logging_steps 10 --save_strategy steps "
    "--data_seed 42 --save_steps 500 --save_total_limit 40 --evaluation_strategy steps --eval_dataset_size 1024 "
    "--max_eval_samples 1000 --per_device_eval_batch_size 1 --max_new_tokens 32 --dataloader_num_workers 1 "
    "--group_by_length --logging_strategy steps --remove_unused_columns False --do_train --do_eval --lora_r 64 "
    "--lora_alpha 16 --lora_modules all --double_quant --quant_type nf4 --bf16 --bits 4 --warmup_ratio 0.03 "
    "--lr_scheduler_type constant --gradient_checkpointing --dataset oasst1.jsonl --source_max_len 16 "
    "--target_max_len 512 --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --max_steps 1875 "
    "--eval_steps 187 --learning_rate 0.0002 --adam_beta2 0.999 --max_grad_norm 0.3 --lora_dropout 0.1 "
    "--weight_decay 0.0 --seed 0"
)


def value_of(found: RunConfig, dotted: str) -> Any:
    node: Any = found.model_dump(mode="json")
    for part in dotted.split("."):
        node = node[int(part) if part.isdigit() else part]
    return node


def assert_has(found: RunConfig, expected: dict[str, Any]) -> None:
    assert {dotted: value_of(found, dotted) for dotted in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            LLAMA_FACTORY,
            {
                "model.path": "path-to-yuan",
                "model.dtype": "bfloat16",
                "model.quantization": None,
                "data.train.0.path": "alpaca_en",
                "data.registry": "data",
                "data.eval": None,
                "data.chat_template": "yuan",
                "data.max_length": 2048,
                "data.num_workers": 16,
                "tuning.kind": "full",
                "objective.kind": "sft",
                "training.global_batch_size": 16,
                "training.learning_rate": 5e-5,
                "training.num_train_epochs": 3.0,
                "training.max_grad_norm": 0.5,
                "training.save_steps": 10000,
                "training.activation_checkpointing": True,
                "output_dir": "yuan2_2B_full",
            },
        ),
        (
            QLORA_IN_IT,
            {
                "data.train.0.path": "alpaca_zh",
                "data.train.1.path": "own",
                "data.registry": "registry",
                "data.chat_template": "gemma@llamafactory",
                "model.quantization.kind": "nf4",
                "tuning.kind": "lora",
                "tuning.target_modules": ["q_proj", "k_proj", "v_proj"],
                "tuning.r": 64,
                "training.max_steps": None,
            },
        ),
        (
            TRL,
            {
                "model.path": "meta-llama/Llama-2-7b-hf",
                "model.quantization.kind": "nf4",
                "data.train.0.path": "hf:timdettmers/openassistant-guanaco",
                "tuning.kind": "lora",
                "training.global_batch_size": 8,
                "report_to": ["wandb"],
            },
        ),
        (
            LLAMA_RECIPES,
            {
                "model.path": "../models_hf/7B",
                "model.quantization.kind": "int8",
                "tuning.kind": "lora",
                "training.global_batch_size": 4,
                "output_dir": "../models_ft/7B-peft",
            },
        ),
        (
            QLORA,
            {
                "model.quantization.kind": "nf4",
                "model.quantization.double_quant": True,
                "model.dtype": "bfloat16",
                "tuning.r": 64,
                "tuning.lora_alpha": 16,
                "tuning.lora_dropout": 0.1,
                "tuning.target_modules": "all-linear",
                "data.max_length": 528,
                "training.lr_scheduler_type": "constant",
                "training.warmup_steps": 0,
                "training.max_steps": 1875,
                "training.eval_steps": 187,
                "data.eval": 0.05,
                "training.optim.adam_beta2": 0.999,
                "training.global_batch_size": 16,
                "seed": 0,
            },
        ),
    ],
    ids=["llama-factory", "its qlora", "trl", "llama-recipes", "qlora"],
)
def test_a_command_line_is_answered_at_once_with_one_that_works(
    line: str, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *line.split()]) == 2
    told = capsys.readouterr().err
    for flag in re.findall(r"--\w+", line):
        assert f"command line: {flag}: " in told, flag
    fix = told.partition("fix: luthier train ")[2]
    assert fix.count("\n") == 1
    assert_has(config.load(None, shlex.split(fix)), expected)


FILE = """\
model_name_or_path: meta-llama/Llama-2-7b-hf
save_on_each_node: true
device_map: auto
load_in_4bit: true
bnb_4bit_compute_dtype: float16
bnb_4bit_quant_type: fp4
bnb_4bit_use_double_quant: false
llm_int8_threshold: 6.0
stage: sft
finetuning_type: lora
task_type: CAUSAL_LM
inference_mode: false
lora_target: W_pack
enable_input_require_grads: true
dataset: train.jsonl
val_size: 0.1
overwrite_cache: true
output_dir: out
logging_dir: logs
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
num_train_epochs: 3.0
max_steps: -1
warmup_ratio: 0.03
optim: adamw_torch
evaluation_strategy: epoch
save_strategy: epoch
save_total_limit: 1
load_best_model_at_end: true
push_to_hub: false
report_to: none
"""


def test_a_file_is_answered_key_by_key_with_a_file_that_works() -> None:
    told = refusal(FILE)
    lines, _, whole = told.partition("\nfix: as a whole, in luthier's words:\n\n")
    for number, line in enumerate(FILE.splitlines(), start=1):
        if line.startswith("output_dir"):
            continue  # is ours
        assert f"mine.yaml:{number}: {line.partition(':')[0]}" in lines, line
    assert "compute_dtype: float16" in lines
    assert "training.warmup_steps: 0.03" in lines
    found = load(whole)
    expected = {
        "model.quantization": {"kind": "fp4", "double_quant": False, "compute_dtype": "float16"},
        "tuning.target_modules": ["W_pack"],
        "data.eval": 0.1,
        "training.global_batch_size": 16,
        "training.learning_rate": 1e-4,
        "training.max_steps": None,
        "training.warmup_steps": 0.03,
        "training.optim.kind": "adamw",
        "training.eval_steps": 0.34,
        "training.save_steps": 0.34,
        "training.save_total_limit": 2,
        "training.load_best_checkpoint": True,
        "report_to": [],
    }
    assert_has(found, expected)


def test_what_another_tool_means_by_no_is_no_evaluation() -> None:
    """Also where it holds out data that nothing would ask for."""
    text = "base_model: m\ndatasets: [{path: a.jsonl, type: alpaca}]\nval_set_size: 0.05\neval_strategy: 'no'\neval_steps: 5\n"
    told = refusal(text)
    assert "mine.yaml:3: val_set_size is another tool's name: nothing is evaluated there; leave it out" in told
    assert load(told.partition("words:\n\n")[2]).data.eval is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "{path: json, data_files: train.jsonl, type: chat_template, field_messages: talk}",
            [{"path": "train.jsonl", "format": {"kind": "messages", "messages": "talk"}}],
        ),
        (
            "{path: org/d, name: sub, split: 'train[:10%]'}",
            [{"path": "hf:org/d", "subset": "sub", "split": "train[:10%]"}],
        ),
        ("{path: json, data_files: [a.jsonl, b.json.gz], split: train}", [{"path": "a.jsonl"}, {"path": "b.json.gz"}]),
        (
            "{path: a.jsonl, ds_type: json, type: alpaca, roles_to_train: [assistant]}",
            [{"path": "a.jsonl", "format": {"kind": "alpaca"}}],
        ),
        (
            "{path: org/d, type: completion, field: story, revision: main}",
            [{"path": "hf:org/d", "revision": "main", "format": {"kind": "text", "text": "story"}}],
        ),
        (
            "{path: a.jsonl, type: chat_template, field_messages: conversations, "
            "message_property_mappings: {role: from, content: value}, roles: {user: [asker], assistant: [gpt]}}",
            [{"path": "a.jsonl", "format": {"kind": "sharegpt", "roles": {"asker": "user", "gpt": "assistant"}}}],
        ),
    ],
)
def test_all_that_an_entry_of_its_data_sets_says_is_kept(entry: str, expected: list[dict[str, Any]]) -> None:
    told = refusal(f"base_model: m\ndatasets: [{entry}]\n")
    found = load(told.partition("words:\n\n")[2]).data.train
    said = [one.model_dump(mode="json", exclude_unset=True) for one in found]
    assert [one.keys() for one in said] == [one.keys() for one in expected]
    for one, wanted in zip(said, expected, strict=True):
        assert wanted.pop("format", {}).items() <= one.pop("format", {}).items()
        assert one == wanted


@pytest.mark.parametrize(
    ("entry", "lost"),
    [
        ("{path: org/d, data_files: part.jsonl}", "data_files: part.jsonl"),
        ("{path: a.jsonl, shards: 4}", "shards: 4"),
        ("{path: a.jsonl, split: 'train[:10%]'}", "split: 'train[:10%]'"),
        ("{path: a.jsonl, name: sub}", "name: sub"),
        ("{path: json}", "path: json"),
        ("{path: json, data_files: a.txt}", "data_files: a.txt"),
        ("{path: a.jsonl, type: input_output}", "type: input_output"),
        ("{path: a.jsonl, type: {field_output: answer}}", "type: {field_output: answer}"),
        ("{path: a.jsonl, type: chat_template, roles_to_train: [user]}", "roles_to_train: [user]"),
    ],
)
def test_an_entry_that_says_what_nothing_here_does_is_no_other_data_set(entry: str, lost: str) -> None:
    told = refusal(f"base_model: m\ndatasets: [{{path: b.jsonl}}, {entry}]\n")
    assert "datasets is another tool's name: nothing here does the same as " in told
    assert lost in told
    assert "fix" not in told


def test_what_is_wrong_on_the_command_line_is_told_beside_what_is_wrong_in_the_file() -> None:
    text = "model: m\ndata: d.jsonl\nlora_rank: 4\nfoo: 1\n"
    told = refusal(text, "lerning_rate=3", "r", "torch_dtype=float16", "seed=x")
    for said in (
        "mine.yaml:3: lora_rank is another tool's name: write tuning.r: 4",
        "mine.yaml:4: foo: unknown key",
        'command line: lerning_rate: there is no such key; did you mean "learning_rate"?',
        "command line: 'r' is not key=value",
        "command line: torch_dtype is another tool's name: write dtype=float16",
        "command line: seed: wrong value, found 'x'",
    ):
        assert said in told, told


def test_overrides_of_a_file_that_is_right_are_answered_with_the_file_and_the_words_to_type() -> None:
    told = refusal("model: m\ndata: d.jsonl\ntuning: {kind: lora, r: 4}\n", "lora_target=q,v", "lr=1e-5", "seed=3")
    assert told.endswith("fix: luthier train mine.yaml target_modules=[q,v] learning_rate=1e-5 seed=3")


OURS = "model: m\ndata: d.jsonl\ntraining: {global_batch_size: 16}\n"


@pytest.mark.parametrize(
    ("text", "typed", "fix"),
    [
        (OURS, "per_device_train_batch_size=2 gradient_accumulation_steps=4", "global_batch_size=8"),
        (OURS, "train_batch_size=2 lora_r=4", "r=4 global_batch_size=2"),
        (OURS, "gradient_accumulation_steps=4 lora_r=4", "r=4"),
        (OURS, "train_batch_size=2 global_batch_size=32 lora_r=4", "r=4 global_batch_size=32"),
        (
            "model: m\ndata: {train: d.jsonl, eval: 0.1}\n",
            "per_device_train_batch_size=2 gradient_accumulation_steps=2 eval_steps=2",
            "eval_steps=2 global_batch_size=4",
        ),
    ],
)
def test_what_is_typed_overrides_the_file_in_whosever_words(text: str, typed: str, fix: str) -> None:
    assert refusal(text, *typed.split()).endswith(f"fix: luthier train mine.yaml {fix}")


def test_what_is_typed_in_our_words_overrides_another_tools_key_of_the_file() -> None:
    text = "model_name_or_path: m\nload_in_4bit: true\ndataset: d.jsonl\nlr: 1e-4\nlora_rank: 8\n"
    told = refusal(text, "learning_rate=5e-5", "model=other", "tuning=lora")
    expected = {"model.path": "other", "model.quantization.kind": "nf4", "training.learning_rate": 5e-5, "tuning.r": 8}
    assert_has(load(told.partition("words:\n\n")[2]), expected)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("per_device_train_batch_size=2 gradient_accumulation_steps=2 eval_steps=2", ["eval_steps"]),
        ("lora_r=4 eval_steps=2 load_best_model_at_end=true", ["eval_steps", "load_best_checkpoint"]),
    ],
)
def test_keys_that_ask_for_held_out_rows_are_kept_and_what_is_held_out_is_said(typed: str, keys: list[str]) -> None:
    words = ["model=m", "data=d.jsonl", *typed.split()]
    told = refusal("model: unused\n", *words)
    assert f"data.eval: nothing is held out, and {' and '.join(keys)} asks for it: 0.05 is added" in told
    found = config.load(None, ["data=d.jsonl", *shlex.split(told.partition("fix: luthier train mine.yaml ")[2])])
    assert_has(found, {"data.eval": 0.05, "training.eval_steps": 2})


def test_what_is_left_out_of_a_whole_configuration_is_said() -> None:
    text = "model_name_or_path: m\ndataset: d.jsonl\n"
    told = refusal(text + "evaluation_strategy: 'no'\neval_steps: 5\nwarmup_ratio: 0.1\nlr_scheduler_type: constant\n")
    assert "training.eval_steps: nothing is evaluated; it is left out" in told
    assert "training.warmup_steps: constant has no warm-up; it is left out" in told
    told = refusal(text + "finetuning_type: full\nlora_rank: 8\n")
    assert "tuning.r: nothing has such a key in this configuration; it is left out" in told


def test_an_own_key_as_a_flag_is_answered_with_the_word_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=m", "data=d.jsonl", "--learning-rate", "1e-4", "--r=3"]) == 2
    told = capsys.readouterr().err
    assert "--learning-rate: write learning_rate=1e-4" in told
    assert "fix: luthier train model=m data=d.jsonl r=3 learning_rate=1e-4" in told


def test_a_misspelt_option_is_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mine.yaml", "--resme"]) == 2
    assert 'did you mean "--resume"?' in capsys.readouterr().err


def test_what_has_no_objective_here_is_said_and_no_configuration_is_proposed() -> None:
    told = refusal("model_name_or_path: m\ndataset: d.jsonl\nstage: ppo\n")
    assert "stage is another tool's name: no objective learns from a model's own answers" in told
    assert "fix" not in told
    assert "no objective learns from a model's own answers" in explain("ppo")


def test_judged_answers_and_texts_of_another_tool_become_an_objective() -> None:
    head = "model_name_or_path: m\ndataset: d.jsonl\n"
    told = refusal(head + "stage: kto\npref_beta: 0.2\nkto_chosen_weight: 1.2\nkto_rejected_weight: 0.9\n")
    for said in ("kind: kto", "beta: 0.2", "desirable_weight: 1.2", "undesirable_weight: 0.9"):
        assert said in told
    told = refusal(head + "stage: pt\ncutoff_len: 512\n")
    assert "pretrain" in told
    assert "max_length: 512" in told


def test_preferences_of_another_tool_become_an_objective() -> None:
    of_factory = "model_name_or_path: m\ndataset: d.jsonl\nstage: dpo\npref_loss: ipo\npref_beta: 0.2\npref_ftx: 1.0\n"
    told = refusal(of_factory)
    for said in ("kind: dpo", "loss: ipo", "beta: 0.2", "sft_weight: 1.0"):
        assert said in told, told
    assert "objective: reward" in refusal("model_name_or_path: m\ndataset: d.jsonl\nstage: rm\n")
    told = refusal("base_model: m\ndatasets: d.jsonl\nrl: simpo\nrl_beta: 2.0\n")
    assert "kind: simpo" in told or "objective: simpo" in told


@pytest.mark.parametrize("key", sorted({*RENAMED, *NOT_NEEDED}))
def test_every_name_has_an_answer_and_one_with_a_place_is_accepted(key: str) -> None:
    assert explain(key)
    assert generic(key)
    for value in (True, False, "no", "a", 3, 0.5, None, [], ["x"]):
        found = answer(key, value, {key: value})
        assert found is not None
        assert found.words()
        assert found.words(True)


def test_every_translator_is_of_a_name_that_is_known() -> None:
    assert set(BY_VALUE) <= set(RENAMED)
