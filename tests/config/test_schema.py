"""The JSON Schema of the configuration says what the configuration takes."""

from __future__ import annotations

import json

import jsonschema
import pytest

from luthier.config.documents import parse_yaml
from luthier.config.keys import keys
from luthier.config.schema import json_schema
from tests.helpers.configs import load, refusal

SMALL = "model: org/name\ndata: train.jsonl\noutput_dir: runs/mine\n"

SCHEMA_ACCEPTS = [
    "model: m\ndata: d\n",
    SMALL,
    SMALL + "tuning: {r: 8}\n",
    SMALL + "tuning: full\n",
    SMALL + "training: {optim: muon}\ndistributed: ddp\n",
    SMALL + "training: {optim: {adam_beta1: 0.8}}\n",
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
    SMALL + "training: {optim: {kind: lion, adam_beta1: 0.8}}\n",
    SMALL + "distributed: {kind: ddp, port: 1}\n",
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
