"""Lines of other programs, pasted behind a command of luthier: each is answered with the line of that command that works."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.cli._shared import split_flags


def test_a_flag_takes_no_configuration_file() -> None:
    words = ["--learning_rate", "1e-4", "mine.yaml", "max_steps=3", "--target", "q_proj", "v_proj"]
    assert split_flags(words) == (
        ["mine.yaml", "max_steps=3"],
        [("--learning_rate", "1e-4"), ("--target", "[q_proj, v_proj]")],
    )


ROWS = "--model_name_or_path X --dataset train.jsonl"
ADAPTER = "--model_name_or_path X --adapter_name_or_path Y --template llama2"


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (f"src/train_bash.py --stage sft {ROWS}", "train model=X data.train=train.jsonl objective=sft"),
        (f"--stage sft {ROWS}", "train model=X data.train=train.jsonl objective=sft"),
        (f"train src/train_bash.py {ROWS} --resume", "train model=X data.train=train.jsonl --resume"),
        (f"torchrun --nproc_per_node 8 src/train.py {ROWS}", "train model=X data.train=train.jsonl"),
        ("train src/train_bash.py mine.yaml r=3", "train mine.yaml r=3"),
        (f"data {ROWS} --row 3", "data model=X data.train=train.jsonl --row 3"),
        ("data mine.yaml lora_rank=4 lr=1e-4", "data mine.yaml r=4 learning_rate=1e-4"),
        (f"eval {ROWS} --max_samples 5", "eval X --data train.jsonl --limit 5"),
        (
            f"chat {ADAPTER} --finetuning_type lora --max_new_tokens 5",
            "chat Y --chat-template llama2@llamafactory --max-new-tokens 5",
        ),
        ("chat src/cli_demo.py --model_name_or_path X --infer_backend vllm", "chat X"),
        (f"export {ADAPTER} --export_dir Z --export_size 2", "export Y --output Z"),
        ("export runs/x --trust_remote_code", "export runs/x --trust-remote-code --output DIR"),
        ("merge --base_model X --lora_model_dir Y", "merge Y --output DIR"),
        (
            f"compare {ADAPTER} --eval_dataset q.jsonl",
            "compare Y --chat-template llama2@llamafactory --prompts q.jsonl",
        ),
        ("inspect --model_name_or_path X --load_in_4bit --all", "inspect X quantization=nf4 --all"),
        ("inspect X lora_rank=4 load_in_4bit=true", "inspect X quantization=nf4 r=4"),
        (f"init {ROWS}", "init train.jsonl --model X"),
        ("doctor --learning_rate 3", "doctor"),
        ("template list --model_name X", "template list"),
        ("chat X --top_k 5 --temperature 0.5", "chat X --temperature 0.5"),
        ("export --adapter_name_or_path --export_dir", "export RUN --output DIR"),
    ],
)
def test_a_pasted_line_is_answered_with_the_line_of_the_command(
    line: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: X\ndata: train.jsonl\n")
    assert main(shlex.split(line)) == 2
    told = capsys.readouterr().err
    assert told.endswith(f"fix: luthier {fix}\n"), told
    for word in shlex.split(line):
        if word.startswith("--") and word not in ("--resume", "--row", "--all", "--nproc_per_node", "--temperature"):
            assert f"command line: {word}: " in told
        if word.endswith(".py"):
            assert f"{word} starts another program; leave it out" in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--hlep", "Possible options: --help"),
        ("chat X --foo", "No such option: --foo"),
        ("eval X --datta f.jsonl", "No such option: --datta"),
        ("data mine.yaml --longst", 'did you mean "--longest"?'),
        ("no.py", "starts another program"),
    ],
)
def test_what_is_of_no_program_is_told_as_before(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_a_registry_that_is_not_there_is_answered_with_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the line has that is proposed for a name of LLaMA-Factory's data sets."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model=X", "data.train=alpaca_en", "registry=data"]) == 2
    told = capsys.readouterr().err
    assert "fix: data.registry=PATH/dataset_info.json; or leave registry out, and data.train=FILE" in told
