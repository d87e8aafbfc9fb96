"""What `luthier compare` asks each model, in one record. Nothing heavy is imported for it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.config import data_file
from luthier.errors import UserError


@dataclass(frozen=True)
class Asked:
    """Requests, and rows of a file, and how they are answered."""

    prompts: tuple[str, ...] = ()
    path: str | None = None
    """a file of requests, or of rows whose last answers are the references"""
    system: str | None = None
    """for requests; default: that of the training data"""
    limit: int | None = None
    """only the first so many rows"""
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    drop_bad_rows: bool = False
    chat_template: str | None = None
    trust_remote_code: bool = False
    judge: str | None = None
    """a reward run that scores the answers"""

    def refuse_wrong(self, target: str = "") -> None:
        """Before a model is loaded.

        Args:
            target: what has to be asked something; "" where that is not needed.

        Raises:
            UserError: there is nothing to ask, or the map of the file is wrong.
        """
        if target and not self.prompts and self.path is None:
            raise UserError(
                "command line",
                "there is nothing to ask",
                "--prompt TEXT or --prompts FILE",
                f'luthier compare {target} --prompt "Who are you?"',
            )
        if self.judge is not None and not self.prompts and self.path is None:
            raise UserError(
                f"--judge {self.judge}",
                "there is nothing to ask, so it would judge nothing",
                "--prompt TEXT or --prompts FILE beside it",
                '--prompt "Who are you?"',
            )
        if self.path is not None:
            data_file(self.path)
