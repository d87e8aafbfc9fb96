"""Data, a tiny model and its configuration, for the tests of `luthier data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier import config
from luthier.config import RunConfig
from luthier.inspecting.data.look import look
from luthier.inspecting.data.report import DataReport
from luthier.inspecting.data.shown_rows import Wanted
from tests.helpers import tokenizers
from tests.helpers.tiny_models import tiny_llama

PLAIN = [
    {"instruction": f"Say {word}", "output": f"{word}, as you wish"} for word in ("violin", "lute", "guitar", "oud")
]


def write_rows(rows: list[dict[str, Any]], path: str = "train.jsonl") -> None:
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prepare_folder(rows: list[dict[str, Any]]) -> None:
    """In the working folder: a model, `train.jsonl` and `mine.yaml`."""
    tiny_llama(Path("model"))
    tokenizers.save(tokenizers.chatml(), Path("model"))
    write_rows(rows)
    Path("mine.yaml").write_text("model: ./model\ndata: train.jsonl\noutput_dir: runs/x\n", encoding="utf-8")


def loaded(*overrides: str) -> RunConfig:
    return config.load("mine.yaml", overrides)


def looked(*overrides: str, wanted: Wanted | None = None, **more: Any) -> DataReport:
    return look(loaded(*overrides), wanted or Wanted(), **more)
