"""A finished run, for scripts and notebooks: its figures, and the model that came of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.reporting.figures import loss_curve, read_figures
from luthier.reporting.recorder import read_lines
from luthier.words import counted

if TYPE_CHECKING:
    from luthier.config import RunConfig
    from luthier.models.opened import Opened


class Run:
    """The folder of a run. Everything is read from its files when asked for.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: str | Path, trust_remote_code: bool = False) -> None:
        self.folder = Path(folder)
        self.trust_remote_code = trust_remote_code
        if not (self.folder / "config.yaml").is_file():
            raise UserError(
                str(self.folder), "there is no config.yaml", "the folder of a run", "luthier runs lists them"
            )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one a step, and one an evaluation."""
        return read_lines(self.folder / "metrics.jsonl")

    @property
    def report(self) -> Path:
        """The self-contained report; a file to open in a browser."""
        return self.folder / "report.html"

    @cached_property
    def config(self) -> RunConfig:
        """As resolved at the start."""
        from luthier import config

        return config.load(self.folder / "config.yaml")

    @cached_property
    def opened(self) -> Opened:
        """The tuned model, loaded at the first use and kept."""
        from luthier.models.opened import open_model

        return open_model(str(self.folder), trust_remote_code=self.trust_remote_code)

    def chat(
        self,
        text: str,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> str:
        """One answer of the tuned model. Raises UserError where `text` leaves no room for it."""
        from luthier.chatting import Chat, Settings

        return Chat(self.opened, system, Settings(temperature, top_p, max_new_tokens, seed)).say(text).text

    def __repr__(self) -> str:
        losses = [line["loss"] for line in self.metrics if line.get("loss") is not None]
        course = f", {counted(len(losses), 'step')}, loss {losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""
        return f"Run({str(self.folder)!r}{course})"

    def _repr_html_(self) -> str:
        """The loss curve, for notebooks."""
        return loss_curve(read_figures(self.folder))
