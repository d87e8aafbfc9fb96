"""What is said about keys: by `luthier explain`, and by the schema, which accepts and refuses what luthier does."""

from __future__ import annotations

import json

import jsonschema
import pytest

from luthier.config.documents import parse_yaml
from luthier.config.keys import explain, find, keys
from luthier.config.schema import json_schema
from luthier.errors import UserError
from tests.helpers.configs import load, refusal

SMALL = "model: org/name\ndata: train.jsonl\noutput_dir: runs/mine\n"


def test_every_key_has_a_meaning_and_says_what_it_takes() -> None:
    for key in keys():
        assert key.meaning, f"{key.dotted} has no docstring"
        assert key.takes, key.dotted
        assert key.required or key.default or key.name == "training", f"{key.dotted} has no default"


def test_explain_finds_keys_by_name_and_by_path_and_other_tools_names() -> None:
    assert [key.dotted for key in find("learning_rate")] == ["training.learning_rate"]
    assert "2e-4 (lora)" in explain("training.learning_rate")
    assert "2e-5 (freeze, full)" in explain("learning_rate")
    assert "muon: Muon (Jordan, 2024)" in explain("optim")
    assert "tuning.r" in explain("lora_rank")
    assert "exit code 4" in explain("exit 4")
    assert explain("nan").startswith("NaN: ")
    assert "max_tokens_per_micro_batch" in explain("out of memory")
    assert explain("pissa").startswith("pissa is a value of tuning.init_lora_weights")
    assert explain("nf4").startswith("nf4 is a value of model.quantization")
    with pytest.raises(UserError, match="learning_rate"):
        explain("learnig_rate")


SCHEMA_ACCEPTS = [
    "model: m\ndata: d\n",
    SMALL,
    SMALL + "tuning: {r: 8}\n",
    SMALL + "tuning: full\n",
    SMALL + "tuning: {kind: full}\nreport_to: wandb\n",
    "model: {path: m, quantization: nf4}\ndata: [a.jsonl, {path: b.csv}]\noutput_dir: o\n",
    "model: {path: m, quantization: {kind: int8, outlier_threshold: 6}}\n"
    "data: {train: a.jsonl, eval: 0.1}\noutput_dir: o\n",
    SMALL + "training: {warmup_steps: 100, activation_checkpointing: true, max_tokens_per_micro_batch: 512,"
    " max_grad_norm: null}\n",
]
SCHEMA_REFUSES = [
    "model: m\noutput_dir: o\n",
    SMALL + "tuning: {kind: full, r: 8}\n",
    SMALL + "tuning: lara\n",
    SMALL + "seed: a\n",
    SMALL + "bogus: 1\n",
    SMALL + "training: {max_steps: 0}\n",
    "model: {path: m, quantization: {double_quant: true}}\ndata: d\noutput_dir: o\n",
]


@pytest.mark.parametrize("text", SCHEMA_ACCEPTS)
def test_the_schema_accepts_what_luthier_accepts(text: str) -> None:
    run = load(text)
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(parse_yaml(text, "x").tree)
    validator.validate(parse_yaml(run.resolved_yaml(), "x").tree)


@pytest.mark.parametrize("text", SCHEMA_REFUSES)
def test_the_schema_refuses_what_luthier_refuses(text: str) -> None:
    refusal(text)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(parse_yaml(text, "x").tree)


def test_the_schema_is_a_schema_and_describes_every_key() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    assert all(f'"{key.name}"' in text for key in keys())
