"""A row alone is made where torch is not imported, and is the same as with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.inspecting.data.row_alone import without_torch
from tests.helpers import tokenizers
from tests.helpers.tiny_models import save_twin

ASKS_TWICE = """
import json, sys
from dataclasses import asdict
from luthier import config
from luthier.errors import UserError
from luthier.inspecting.data.look import look_at_row

def rows(*keys):
    return [asdict(row) for name in ("1", "2") for row in look_at_row(config.load(None, list(keys)), name)]

def said():
    try:
        rows("model=broken", "data=rows.jsonl")
    except UserError as error:
        return str(error)

asked = [["model=llama", "data=rows.jsonl", "data.add_tokens=[<new>]"],
         ["model=gemma", "data=rows.jsonl", "data.on_system=fold"],
         ["model=chatml", "data=rows.jsonl", "max_length=24", "on_long_row=drop"]]
quick = [rows(*keys) for keys in asked]
assert not {"torch", "transformers"} & set(sys.modules), "it was imported"
wrong = said()
assert "torch" in sys.modules
assert [rows(*keys) for keys in asked] == quick
assert wrong == said() and "the tokenizer cannot be loaded" in wrong
print(json.dumps([len(one) for one in quick]))
"""


@pytest.mark.prove
def test_without_torch_a_row_is_what_it_is_with_it(tmp_path: Path) -> None:
    models = {"llama": tokenizers.llama_like(), "gemma": tokenizers.gemma_like(), "chatml": tokenizers.chatml()}
    for name, tokenizer in models.items():
        save_twin(tmp_path / name, "llama", vocab_size=700)
        tokenizers.save(tokenizer, tmp_path / name)
    save_twin(tmp_path / "broken", "llama")
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    talk = [{"role": "user", "content": "Say é <new>"}, {"role": "assistant", "content": "你好 🙂"}]
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": talk}, {"messages": [system, *talk, talk[0], {"role": "assistant", "content": "long " * 40}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [sys.executable, "-c", ASKS_TWICE]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert min(json.loads(done.stdout)) >= 2


def test_where_torch_is_imported_it_is_made_here() -> None:
    assert "torch" in sys.modules
    assert without_torch(list) is None
