"""Which tokens end generation: where a model's folder says so, and where a result says it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.errors import UserError

GENERATION_CONFIG = "generation_config.json"


def save_stop_ids(folder: Path, stop_ids: Iterable[int]) -> None:
    """Writes the ids that end generation into the folder's generation_config.json, where servers look for them; what else
    stands there stays.
    """
    path = folder / GENERATION_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings["eos_token_id"] = sorted(stop_ids)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stop_ids_of(tokenizer: Any) -> set[int]:
    """The tokenizer's end token and the `eos_token_id` of the generation_config.json beside it.

    Raises:
        UserError: that file is no JSON map.
    """
    ids = {tokenizer.eos_token_id} - {None}
    path = Path(str(tokenizer.name_or_path)) / GENERATION_CONFIG
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError, OSError) as error:
            raise UserError(str(path), f"cannot be read: {error}", "the JSON map that came with the model") from None
        ids |= set(found) if isinstance(found, list) else {found} - {None}
    return {index for index in ids if isinstance(index, int)}
