"""The process of sandbox.py, as its parent sees it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from luthier.errors import EnvironmentProblem
from luthier.system.children import Patience
from luthier.system.secrets import without_secrets

SANDBOX = Path(__file__).with_name("sandbox.py")
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that no template brings about: its memory is limited, and where its time is over it is known who killed it."""


class NoAnswer(Exception):
    """The template took too long, or its process came to an end by it; the text says which."""


class Sandbox:
    """A process that renders a template; it ends with this object at the latest."""

    def __init__(self, origin: str) -> None:
        """`origin`: whose template it renders, for errors."""
        self._origin = origin
        # -P: the script's own folder stays out of the import path. Its own session: ctrl-c reaches the parent only.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SANDBOX)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=without_secrets(),
        )
        self.close = weakref.finalize(self, _end, self._process)

    @property
    def has_ended(self) -> bool:
        return not self.close.alive

    def ask(self, value: Any, limit_s: float) -> Any:
        """Sends one line and waits for one. Where this raises, the process has ended.

        Raises:
            NoAnswer: it takes too long, or ends.
            EnvironmentProblem: it was stopped or ended from outside.
        """
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        with Patience(self._process, limit_s) as patience:
            try:
                asked.write(json.dumps(value) + "\n")
                asked.flush()
                line = answers.readline()
            except BrokenPipeError:
                line = ""
        if line.endswith("\n") and not patience.is_over:
            return json.loads(line)
        self.close()
        ended_by = -self._process.returncode
        if patience.was_stopped:
            raise self._from_outside(f"was stopped for {limit_s:g} s")
        if patience.is_over:
            raise NoAnswer(f"it did not finish within {limit_s:g} s")
        if ended_by in FROM_OUTSIDE:
            raise self._from_outside(f"was ended by signal {ended_by} (out of memory?)")
        raise NoAnswer("its process ended (out of memory?)")

    def _from_outside(self, what: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"chat template of {self._origin}",
            f"the process that renders it {what}",
            "a machine that lets it work",
            "the same command",
        )


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
