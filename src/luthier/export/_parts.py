"""What an export is made of. The families do not load models: whoever exports hands the parts over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Parts:
    """An opened run, adapter or model."""

    model: Any
    """float32, on the CPU: a PEFT model where `adapter` is set, else a transformers model. An export consumes it: whoever
    exports lets go of it, and nothing else may hold it, so that the written model can be loaded in its place."""
    tokenizer: Any
    template: str | None
    """The chat template as it is served, without generation marks."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    base: Path
    """The folder of the base model, or of the model itself."""
    base_name: str
    """`ModelSource.plain` of the base: a hub's name, a folder, or as a configuration names it."""
    base_revision: str | None
    """The commit of a hub's base."""
    base_dtype: str
    """The dtype in which the base is loaded where nobody asks for another, for example `bfloat16`."""
    as_stored: bool
    """Whether the base's weights are those of its files; not where they were quantized and unpacked again, or are those of a
    checkpoint."""
    adapter: Path | None
    """The folder of the adapter, if there is one."""
    trust_remote_code: bool
    """Whether code that comes with the base may run, as it was allowed for opening it."""
    origin: Mapping[str, Any]
    """What stands in `luthier.json` beside every result: where it comes from, and the system text that it learned under."""
    scored: bool = False
    """Whether it gives documents scores, and has no words to say."""
    step: int | None = None
    """Of the checkpoint whose weights the model has; None: they are those of `adapter` or `base`."""

    @property
    def loader(self) -> Any:
        """transformers' class that loads it."""
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        return AutoModelForSequenceClassification if self.scored else AutoModelForCausalLM

    @property
    def labels(self) -> dict[str, int]:
        """What the base of an adapter is loaded with, beside its files."""
        return {"num_labels": 1, "pad_token_id": self.tokenizer.pad_token_id} if self.scored else {}
