"""Every key has an effect: two values of it, all else equal, and some output of the run differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier import config
from luthier.config.keys import SECTIONS, keys
from luthier.errors import LuthierError
from luthier.training import run
from tests.helpers.tiny_models import CHATML, save_twin, tiny_llama, twin

ROWS = [{"instruction": f"Say {number}.", "output": f"{number}! " * (1 + number % 5)} for number in range(40)]
HELD_OUT = ("data.eval=0.2",)
DIVERGES = (
    "data.eval=strange.jsonl",
    "tuning=full",
    "learning_rate=0.1",
    "warmup_steps=0",
    "lr_scheduler_type=constant",
    "eval_steps=1",
    "max_steps=4",
)
"""What is learned makes the held-out answers, which have nothing to do with it, less likely."""

WHOLE_TEXTS = ("data=texts.jsonl", "objective=pretrain", "learning_rate=1e-3")
JUDGED = ("data=pairs.jsonl", "objective=kto", "learning_rate=1e-3")
SCORED = ("data=pairs.jsonl", "objective=reward", "learning_rate=1e-3")
PAIRED = ("data=pairs.jsonl", "objective=dpo", "learning_rate=1e-3")
TAUGHT = ("objective={kind: distill, teacher: model-2}", "learning_rate=1e-3")


@dataclass(frozen=True)
class Case:
    """The override of either run (None: the key is left out), what both share, and the output that must differ."""

    one: str | None
    other: str
    watched: str
    shared: tuple[str, ...] = ()


CASES = {
    "model.path": Case("model=model", "model=model-2", "metrics"),
    "model.dtype": Case("dtype=float32", "dtype=bfloat16", "metrics"),
    "model.quantization": Case(None, "quantization=int8", "metrics"),
    "model.quantization.outlier_threshold": Case(
        "outlier_threshold=0", "outlier_threshold=0.5", "metrics", ("quantization=int8",)
    ),
    "model.quantization.double_quant": Case(
        "double_quant=true", "double_quant=false", "metrics", ("quantization=nf4",)
    ),
    "model.quantization.compute_dtype": Case(
        "compute_dtype=float32", "compute_dtype=bfloat16", "metrics", ("quantization=fp4",)
    ),
    "data.train": Case("data.train=train.jsonl", "data.train=[train.jsonl, both.jsonl]", "ledger"),
    "data.train.path": Case("data.train.path=train.jsonl", "data.train.path=both.jsonl", "metrics"),
    "data.train.format": Case(
        "data.train.format=alpaca", "data.train.format=text", "metrics", ("data.train.path=both.jsonl",)
    ),
    "data.train.num_samples": Case(None, "data.train.num_samples=20", "ledger"),
    "data.registry": Case(
        "data.train.format={kind: alpaca, output: output}",
        "data={registry: dataset_info.json, train: mine}",
        "ledger",
    ),
    "data.system": Case(None, "data.system=Be brief.", "metrics"),
    "data.add_tokens": Case(None, "data.add_tokens=[Say]", "metrics"),
    "data.max_samples": Case(None, "max_samples=20", "ledger"),
    "data.eval": Case(None, "data.eval=0.3", "metrics"),
    "data.train.weight": Case(
        "data.train=[{path: train.jsonl, weight: 1.0}, {path: both.jsonl, weight: 1.0}]",
        "data.train=[{path: train.jsonl, weight: 3.0}, {path: both.jsonl, weight: 1.0}]",
        "metrics",
        ("mixing=all_exhausted",),
    ),
    "data.mixing": Case(
        "mixing=concatenate", "mixing=first_exhausted", "metrics", ("data.train=[train.jsonl, both.jsonl]",)
    ),
    "data.streaming": Case("streaming=false", "streaming=true", "metrics"),
    "data.chat_template": Case("chat_template=auto", "chat_template=other.jinja", "metrics"),
    "data.on_system": Case(
        "on_system=template",
        "on_system=fold",
        "metrics",
        ("data.train.path=system.jsonl", "chat_template=thinks.jinja"),
    ),
    "data.enable_thinking": Case(
        "enable_thinking=true", "enable_thinking=false", "metrics", ("chat_template=thinks.jinja",)
    ),
    "data.max_length": Case("max_length=28", "max_length=24", "ledger", ("on_long_row=drop",)),
    "data.max_row_bytes": Case("max_row_bytes=1000", "max_row_bytes=20", "outcome"),
    "data.max_row_messages": Case("max_row_messages=2", "max_row_messages=1", "outcome"),
    "data.on_bad_row": Case("on_bad_row=error", "on_bad_row=drop", "outcome", ("data.train.path=bad.jsonl",)),
    "data.on_long_row": Case("on_long_row=drop", "on_long_row=truncate", "ledger", ("max_length=28",)),
    "training.global_batch_size": Case("global_batch_size=4", "global_batch_size=3", "metrics"),
    "training.learning_rate": Case("learning_rate=1e-4", "learning_rate=1e-3", "metrics"),
    "training.num_train_epochs": Case("num_train_epochs=0.2", "num_train_epochs=0.5", "metrics", ("max_steps=null",)),
    "training.max_steps": Case("max_steps=3", "max_steps=2", "metrics"),
    "training.optim": Case("optim=adamw", "optim=muon", "metrics"),
    # Of each optimizer that has them: tests/optimizers.
    "training.optim.adam_beta1": Case("adam_beta1=0.9", "adam_beta1=0.5", "metrics"),
    "training.optim.adam_beta2": Case("adam_beta2=0.999", "adam_beta2=0.5", "metrics"),
    "training.optim.adam_epsilon": Case("adam_epsilon=1e-8", "adam_epsilon=1e-2", "metrics"),
    "training.lr_scheduler_type": Case("lr_scheduler_type=cosine", "lr_scheduler_type=linear", "metrics"),
    "training.warmup_steps": Case("warmup_steps=0", "warmup_steps=2", "metrics"),
    "training.weight_decay": Case("weight_decay=0", "weight_decay=0.5", "metrics", ("learning_rate=0.1",)),
    "training.max_grad_norm": Case("max_grad_norm=0.5", "max_grad_norm=null", "result"),
    "training.logging_steps": Case("logging_steps=1", "logging_steps=3", "screen"),
    "training.eval_steps": Case("eval_steps=1", "eval_steps=2", "metrics", HELD_OUT),
    "training.save_steps": Case("save_steps=1", "save_steps=2", "checkpoints", ("save_total_limit=5",)),
    "training.save_total_limit": Case(
        "save_total_limit=2", "save_total_limit=3", "checkpoints", ("save_steps=1", "max_steps=4")
    ),
    "training.early_stopping_patience": Case(None, "early_stopping_patience=1", "metrics", DIVERGES),
    "training.load_best_checkpoint": Case(None, "load_best_checkpoint=true", "result", (*DIVERGES, "max_steps=2")),
    "training.activation_checkpointing": Case(
        "activation_checkpointing=false", "activation_checkpointing=true", "decisions"
    ),
    "training.max_tokens_per_micro_batch": Case(
        "max_tokens_per_micro_batch=30", "max_tokens_per_micro_batch=90", "decisions"
    ),
    "training.share_prefix": Case("share_prefix=auto", "share_prefix=never", "decisions", PAIRED),
    "training.neftune_noise_alpha": Case(None, "neftune_noise_alpha=5", "metrics"),
    "training.sample_prompts": Case(None, "sample_prompts=[hello]", "files"),
    "training.deterministic": Case("deterministic=false", "deterministic=true", "algorithms"),
    "tuning": Case("tuning=lora", "tuning=full", "files"),
    "tuning.r": Case("r=2", "r=3", "result"),
    "tuning.lora_alpha": Case("lora_alpha=4", "lora_alpha=64", "metrics"),
    "tuning.lora_dropout": Case("lora_dropout=0", "lora_dropout=0.5", "metrics"),
    "tuning.last_layers": Case("last_layers=1", "last_layers=2", "result", ("tuning=freeze",)),
    "tuning.first_layers": Case("first_layers=1", "first_layers=2", "result", ("tuning=freeze",)),
    "tuning.patterns": Case("patterns=[.*mlp.*]", "patterns=[.*attn.*]", "result", ("tuning=freeze",)),
    "tuning.target_modules": Case("target_modules=all-linear", "target_modules=[q_proj]", "metrics"),
    "tuning.layers_to_transform": Case(None, "layers_to_transform=[1]", "metrics"),
    "tuning.experts": Case("experts=false", "experts=true", "metrics", ("model=mixture",)),
    "tuning.use_rslora": Case("use_rslora=false", "use_rslora=true", "metrics"),
    "tuning.use_dora": Case("use_dora=false", "use_dora=true", "metrics"),
    "tuning.init_lora_weights": Case("init_lora_weights=pissa", "init_lora_weights=eva", "metrics"),
    "tuning.rank_pattern": Case(None, "rank_pattern={q_proj: 2}", "metrics"),
    "tuning.alpha_pattern": Case(None, "alpha_pattern={q_proj: 2}", "metrics"),
    "tuning.modules_to_save": Case(None, "modules_to_save=[lm_head]", "metrics"),
    "tuning.loraplus_lr_ratio": Case(None, "loraplus_lr_ratio=16", "metrics"),
    "tuning.adapter_path": Case(None, "adapter_path=adapter", "metrics"),
    "objective": Case(
        "objective=sft", "objective={kind: weighted, terms: [{kind: sft}, {kind: z_loss, weight: 0.1}]}", "metrics"
    ),
    "objective.terms": Case(
        "objective={kind: weighted, terms: [{kind: sft}]}",
        "objective={kind: weighted, terms: [{kind: sft}, {kind: z_loss, weight: 0.1}]}",
        "metrics",
    ),
    "objective.gradient_shares": Case(
        "gradient_shares=true",
        "gradient_shares=false",
        "metrics",
        ("objective={kind: weighted, terms: [{kind: sft}, {kind: z_loss, weight: 0.1}]}",),
    ),
    "objective.form": Case(
        "objective={kind: weighted, terms: [{kind: sft}, {kind: z_loss, form: logsumexp}]}",
        "objective={kind: weighted, terms: [{kind: sft}, {kind: z_loss, form: largest}]}",
        "metrics",
    ),
    "objective.over": Case(
        "objective={kind: weighted, terms: [{kind: sft}, {kind: router_balance, over: document}]}",
        "objective={kind: weighted, terms: [{kind: sft}, {kind: router_balance, over: step}]}",
        "metrics",
        ("model=mixture",),
    ),
    "objective.beta": Case("objective.beta=0.1", "objective.beta=0.3", "metrics", PAIRED),
    "objective.loss": Case("objective.loss=sigmoid", "objective.loss=ipo", "metrics", PAIRED),
    "objective.label_smoothing": Case("label_smoothing=0", "label_smoothing=0.1", "metrics", PAIRED),
    "objective.ld_alpha": Case(None, "ld_alpha=0.5", "metrics", PAIRED),
    "objective.reference": Case("objective.reference=kept", "objective.reference=none", "metrics", PAIRED),
    "objective.sft_weight": Case("sft_weight=0", "sft_weight=0.5", "metrics", PAIRED),
    "objective.gamma_beta_ratio": Case(
        "gamma_beta_ratio=0.5", "gamma_beta_ratio=0.1", "metrics", ("data=pairs.jsonl", "objective=simpo")
    ),
    "objective.margin": Case("objective.margin=0", "objective.margin=0.5", "metrics", SCORED),
    "objective.center_rewards_coefficient": Case(
        "center_rewards_coefficient=0", "center_rewards_coefficient=0.5", "metrics", SCORED
    ),
    "objective.documents": Case("objective.documents=joined", "objective.documents=apart", "metrics", WHOLE_TEXTS),
    "objective.block_size": Case("block_size=8", "block_size=16", "metrics", WHOLE_TEXTS),
    "objective.document_separator": Case("document_separator=eos", "document_separator=none", "metrics", WHOLE_TEXTS),
    "objective.desirable_weight": Case("desirable_weight=1", "desirable_weight=1.2", "metrics", JUDGED),
    "objective.undesirable_weight": Case("undesirable_weight=1", "undesirable_weight=0.8", "metrics", JUDGED),
    "objective.teacher": Case("objective.teacher=model-2", "objective.teacher=model-3", "metrics", TAUGHT),
    "objective.teacher_dtype": Case("teacher_dtype=auto", "teacher_dtype=bfloat16", "metrics", TAUGHT),
    "objective.teacher_quantization": Case(None, "teacher_quantization=nf4", "metrics", TAUGHT),
    "objective.divergence": Case("divergence=forward", "divergence=reverse", "metrics", TAUGHT),
    "objective.temperature": Case("objective.temperature=1", "objective.temperature=2", "metrics", TAUGHT),
    "objective.top_k": Case(None, "objective.top_k=3", "metrics", TAUGHT),
    "distributed": Case("distributed=auto", "distributed=ddp", "outcome"),
    "report_to": Case(None, "report_to=tensorboard", "files"),
    "seed": Case("seed=0", "seed=1", "metrics"),
    "output_dir": Case("output_dir=one", "output_dir=other", "folder"),
}

ELSEWHERE = {
    "model.revision": ("tests/models", "revision"),
    "model.adapter": ("tests/training", "model.adapter"),
    "data.train.split": ("tests/data", "split="),
    "data.train.subset": ("tests/data", "subset="),
    "data.num_workers": ("tests/data", "num_workers="),
    "data.max_unpacked_bytes": ("tests/data", "max_unpacked_bytes="),
    "data.train.revision": ("tests/data", "revision="),
    "data.train.data_dir": ("tests/data", "data_dir="),
}
"""Keys that need a hub, a run or many rows: the folder whose tests show their effect, and the word to find there."""

OF_FORMATS = {key.dotted for key in keys() if key.section == "data.train.format"}
"""Keys that name columns: what each of them does to a row is in tests/formats/test_columns.py, which takes all of them."""

ON_CUDA = {"model.quantization.outlier_threshold"}
"""Keys that the library behind them heeds on CUDA only."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with two models and the data."""
    folder = tmp_path_factory.mktemp("keys")
    tiny_llama(folder / "model")
    save_twin(folder / "model-2", "qwen3", seed=1)
    save_twin(folder / "model-3", "qwen3", seed=2)
    save_twin(folder / "mixture", "qwen3_moe")
    torch.manual_seed(1)
    get_peft_model(twin("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        folder / "adapter"
    )
    both = [{**row, "output": row["output"] + "?", "text": row["instruction"]} for row in ROWS]
    system = [{**row, "system": "Be kind."} for row in ROWS]
    for name, rows in {
        "train": ROWS,
        "both": both,
        "system": system,
        "strange": [{"instruction": "Zażółć", "output": "gęślą jaźń " * 9}],
        "pairs": [{"prompt": f"{n}?", "chosen": "yes " * (n % 3 + 1), "rejected": "no, no, no"} for n in range(20)],
        "texts": [{"text": row["output"] * (1 + number % 3)} for number, row in enumerate(ROWS)],
        "bad": [*ROWS, {"instruction": "Say.", "output": ""}],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text('{"mine": {"file_name": "both.jsonl"}}', encoding="utf-8")
    (folder / "other.jinja").write_text(CHATML.replace("<|im_start|>", "<|im_start|>>"), encoding="utf-8")
    thinks = "{{ 'thinks' if enable_thinking else 'answers' }}:" + CHATML
    (folder / "thinks.jinja").write_text(thinks, encoding="utf-8")
    yield folder
    torch.use_deterministic_algorithms(False)


def observe(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """All that a run leaves behind and prints, without its configuration and without times."""
    given = config.load(None, overrides)
    folder = Path(given.output_dir)
    capsys.readouterr()
    try:
        run.execute(given)
    except LuthierError as error:
        return {"outcome": str(error)}
    lines = capsys.readouterr().out.splitlines()
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    )
    weights = [path for path in folder.glob("*/*.safetensors") if path.is_file()]
    return {
        "outcome": "finished",
        "folder": str(folder),
        "metrics": (folder / "metrics.jsonl").read_text(encoding="utf-8"),
        "ledger": (folder / "ledger.json").read_text(encoding="utf-8"),
        "decisions": json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["decisions"],
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "files": [name for name in files if "tfevents" not in name]
        + ["tfevents"] * any("tfevents" in name for name in files),
        "result": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(weights)],
        "screen": sum(line.startswith("step ") for line in lines),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def test_every_key_has_a_case() -> None:
    known = {key.dotted for key in keys()} - (set(SECTIONS) - {"data.train"})
    assert known == set(CASES) | set(ELSEWHERE) | OF_FORMATS


@pytest.mark.prove
@pytest.mark.parametrize("key", CASES)
def test_a_key_has_an_effect(
    key: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    case = CASES[key]
    if key in ON_CUDA and not torch.cuda.is_available():
        pytest.skip(f"{key} has an effect on CUDA only")
    seen = []
    for number, override in enumerate((case.one, case.other)):
        basis = [
            "model=model",
            "data=train.jsonl",
            f"output_dir=runs/{key}-{number}",
            "dtype=float32",
            "max_steps=3",
            "global_batch_size=4",
        ]
        seen.append(observe([*basis, *case.shared, *([override] if override else [])], capsys))
    assert case.watched in seen[0] or case.watched == "outcome", seen[0]
    assert seen[0].get(case.watched) != seen[1].get(case.watched)
    if case.watched != "outcome":
        assert seen[0]["outcome"] == seen[1]["outcome"] == "finished", (seen[0]["outcome"], seen[1]["outcome"])


def test_the_same_twice_differs_in_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a difference would say nothing of a key."""
    monkeypatch.chdir(place)
    runs = [
        observe(
            [
                "model=model",
                "data=train.jsonl",
                f"output_dir=runs/same-{number}",
                "dtype=float32",
                "max_steps=3",
                *HELD_OUT,
            ],
            capsys,
        )
        for number in range(2)
    ]
    assert runs[0] | {"folder": ""} == runs[1] | {"folder": ""}


@pytest.mark.parametrize("key", ELSEWHERE)
def test_keys_that_need_a_hub_are_tested_on_one(key: str) -> None:
    folder, word = ELSEWHERE[key]
    sources = (Path(__file__).parents[2] / folder).rglob("*.py")
    assert any(word in path.read_text(encoding="utf-8") for path in sources)
