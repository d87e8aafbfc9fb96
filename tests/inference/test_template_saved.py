"""A run with a named template is served as it was trained: the template, its stop tokens and the system policy are saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from luthier import config
from luthier.data.chat.library import find
from luthier.inference import verified_export
from luthier.inference.chat import Chat
from luthier.inference.opened import open_model
from luthier.training import run
from luthier.types import Message
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

SYSTEM = "Be kind."


@pytest.mark.prove
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_named_template_is_saved_with_its_stop_token(tuning: str, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    settings = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    (model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 7}), encoding="utf-8")
    rows = [{"instruction": f"Say {number}.", "output": f"{number}!", "system": SYSTEM} for number in range(8)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = [f"model={model}", f"data={data}", f"output_dir={tmp_path / 'run'}", "dtype=float32", "max_steps=2"]
    run.execute(config.load(None, [*keys, f"tuning={tuning}", "chat_template=default", "on_system=fold"]), say=print)

    stop = tiny_tokenizer().eos_token_id
    folder = tmp_path / "run" / ("adapter" if tuning == "lora" else "model")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == sorted({stop, 7})
    opened = open_model(str(tmp_path / "run"))
    assert opened.template is not None
    assert opened.template.facts == replace(find("default").facts, system="folded")
    assert opened.renderer.stop_ids == {stop, 7}
    assert Chat(opened).system == SYSTEM
    asked = [Message("system", SYSTEM), Message("user", "Hi")]
    prompt = f"Human: {SYSTEM}\n\nHi<|im_end|>\nAssistant:"
    assert opened.template.render_one(asked, add_generation_prompt=True) == prompt
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": message.role, "content": message.content} for message in asked]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == prompt
    verified_export.export(
        str(tmp_path / "run"), "adapter" if tuning == "lora" else "merged", tmp_path / "out", say=lambda line: None
    )
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == sorted({stop, 7})
    assert open_model(str(folder)).renderer.prompt_ids(asked) == opened.renderer.prompt_ids(asked)
