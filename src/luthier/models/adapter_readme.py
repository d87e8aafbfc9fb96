"""The page that lies beside an adapter: how it is used by plain transformers and peft."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.models.source import OF_SCORES

README = "README.md"
MADE_BASE = "BASE"


def write_readme(folder: Path, plain: tuple[str, str | None], origin: Mapping[str, Any]) -> None:
    """Writes README.md into an adapter's folder.

    Args:
        plain: `ModelSource.plain` of the base.
        origin: what its luthier.json says.
    """
    name, revision = plain
    made = name.startswith(("pypi:", "ms:")) or Path(name).suffix == ".gguf"
    scored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("task_type") == OF_SCORES
    does = (
        "`luthier score` with this folder scores answers." if scored else "`luthier chat` with this folder talks to it."
    )
    parts = [f"# An adapter of {name}", does, "## With transformers and peft"]
    if made:
        line = f"luthier export {shlex.quote(name)} --to merged --output {MADE_BASE}"
        parts.append(f"transformers does not find the base by that name. This makes a folder of it:\n\n    {line}")
    if (held := origin["base"].get("quantization")) is not None:
        parts.append(f"In training the base was held in {held['kind']}: `base.quantization` in luthier.json.")
    at = "" if revision is None else f", revision={json.dumps(revision)}"
    kind = "AutoModelForSequenceClassification" if scored else "AutoModelForCausalLM"
    at += ", num_labels=1, pad_token_id=tokenizer.pad_token_id" if scored else ""
    code = [
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder',
        f"base = {kind}.from_pretrained({json.dumps(MADE_BASE if made else name)}{at})",
    ]
    if origin.get("new_tokens"):
        code.append(f"base.resize_token_embeddings({origin['embedding_rows']}, mean_resizing=False)")
    code.append('model = PeftModel.from_pretrained(base, ".")')
    parts.append("\n".join(["```python", *code, "```"]))
    if origin.get("system"):
        parts += [
            "## System text",
            "All conversations of its training had one and the same system text: `system` in luthier.json. The chat template of\n"
            "this folder puts it before conversations that have none. With any other template it must be asked with that text as\n"
            "the first message, of the role `system`: a model answers as it was trained only when it is asked so.",
        ]
    (folder / README).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
