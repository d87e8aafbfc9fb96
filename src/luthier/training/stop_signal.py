"""What a signal does to a run: the step is finished and saved, and then it ends."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

STDERR = 2


class StopSignal:
    """SIGTERM, SIGINT, SIGUSR1 and SIGHUP set a flag that the loop reads at the end of a step; a second one acts at once.

    SIGHUP comes when a terminal is closed; where it is ignored (by nohup) it stays so.

    Args:
        speaks: whether this process says so.
    """

    def __init__(self, speaks: bool) -> None:
        self.number = 0
        self.doing = ""
        """what is finished first"""
        self._speaks = speaks
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread (a notebook's worker): its owner handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            self.__exit__()  # a third one finds the handlers of before
            self._say("stopping now; what was saved is whole, and --resume goes on from there")
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.number = number
        again = "; press ctrl-c again to stop now" if number == signal.SIGINT else ""
        self._say(f"finishing {self.doing} and saving{again}")

    def _say(self, text: str) -> None:
        if self._speaks:  # not print: its buffer may be in use where the signal came
            with suppress(OSError):  # the terminal may be gone
                os.write(STDERR, f"{text}\n".encode())
